"""Make a job's enclaves ready where its workers will run: check what is there, hash what they trust, make a key."""

from dataclasses import replace
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.precisions import missing_for_precision
from cnnbench.launch.enclave import Enclaves, run_tool
from cnnbench.launch.gramine import (
    GIB,
    GRAMINE,
    LIBRARIES,
    Enclave,
    encrypt_command,
    find_gramine,
    key_command,
    plan_enclave,
    unread_packages,
    worker_roots,
)
from cnnbench.launch.trusted import hash_files, library_files
from cnnbench.machine.sgx import HOST_SGX, SgxRoots, epc_notes, missing_for_enclaves, missing_tools, require_sgx
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job
from cnnbench.run.workers import worker_environment, worker_specs

TEMPLATE = "gramine.manifest.template"
"""The file of a workload's directory that its enclaves are described by."""


def enclose_job(
    job: Job, inputs: Inputs, template: Path, scratch: Path, roots: SgxRoots = HOST_SGX
) -> tuple[Job, Inputs, Enclaves]:
    """Return a job, its inputs and its enclaves, ready for a run.

    `scratch`: a directory for the signing key and the encrypted model. Raises SkippedError naming everything that is
    missing here.
    """
    planned = plan_enclaves(job, inputs)
    missing = [
        *missing_for_precision(job.precision, job.cpu.flags),
        *missing_for_enclaves(sum(enclave.size_bytes for enclave in planned), roots),
        *missing_tools(),
    ]
    require_sgx(job.case.name, missing)
    inputs = _resolve_paths(inputs)
    wrap_key = Path(job.parameters.wrap_key) if job.parameters.wrap_key else None
    if wrap_key is not None and inputs.model is not None:
        encrypted = scratch / "model.encrypted"
        run_tool(encrypt_command(wrap_key, inputs.model.graph, encrypted))
        inputs = replace(inputs, model=replace(inputs.model, graph=encrypted))
    key = scratch / "enclave-key.pem"
    run_tool(key_command(key))
    enclaves = replace(describe_enclaves(job, inputs, template, find_gramine()), key=key)
    sizes = ", ".join(sorted({f"{enclave.size_bytes / GIB:g} GiB" for enclave in planned}))
    notes = [
        f"every process, the tracing one too, ran in an SGX enclave of its own: {len(planned)} of {sizes}",
        "the enclaves were signed here and attested by nobody; the results are plain files: nothing is confidential",
        *epc_notes(roots.sysfs),
    ]
    return replace(job, notes=(*job.notes, *notes)), inputs, enclaves


def plan_enclaves(job: Job, inputs: Inputs) -> list[Enclave]:
    """Return the enclaves of a job's processes and of the one that traces, if its engine has a model."""
    cores = [[len(one.cpus) for one in process] for process in job.plan.processes]
    if inputs.model is not None:
        cores.append(cores[0][:1])
    return [plan_enclave(each, job.parameters.batch_size, _model_bytes(inputs)) for each in cores]


def describe_enclaves(job: Job, inputs: Inputs, template: Path, gramine: Path | None) -> Enclaves:
    """Return what a job's enclaves have in common, all files hashed; without `gramine`, its own are not among them."""
    wrap_key = Path(job.parameters.wrap_key) if job.parameters.wrap_key else None
    roots = worker_roots(inputs.python, gramine)
    files = []
    if inputs.model is not None:
        files = [inputs.model.check_images, *([] if wrap_key else [inputs.model.graph])]
    return Enclaves(
        template=_read_template(template),
        precision=job.precision,
        python=inputs.python,
        roots=roots,
        trusted=hash_files([*roots, *library_files(LIBRARIES), *files], unread_packages(inputs.python)),
        model_bytes=_model_bytes(inputs),
        gramine=gramine or GRAMINE,
        wrap_key=wrap_key,
    )


def render_first(job: Job, inputs: Inputs, template: Path, scratch: Path, gramine: Path | None) -> str:
    """Return the manifest of a job's first worker as a run would sign it, leaving the worker's spec in `scratch`.

    Nothing of SGX or Gramine is needed for this.
    """
    inputs, logs = _resolve_paths(inputs), scratch / "logs"
    directory = logs / "process-0"
    directory.mkdir(parents=True)
    spec = worker_specs(job, inputs, "manifest", scratch / "shared", logs)[0]
    spec.write(directory / "spec.json")
    return describe_enclaves(job, inputs, template, gramine).render(
        spec, directory, worker_environment(job, spec, inputs.sampler)
    )


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise CnnbenchError(f"{path}: not there; a workload with sgx_ cases needs this template of a Gramine manifest")
    return path.read_text()


def _model_bytes(inputs: Inputs) -> int:
    return inputs.model.graph.stat().st_size if inputs.model is not None else 0


def _resolve_paths(inputs: Inputs) -> Inputs:
    """Return the inputs by their true paths, so that the enclave of the same worker is the same in every run.

    The Python itself stays the link that it is: that makes it the environment's.
    """
    python = inputs.python.parents[1].resolve() / "bin" / inputs.python.name
    model = inputs.model
    if model is not None:
        model = replace(model, graph=model.graph.resolve(), check_images=model.check_images.resolve())
    return replace(inputs, python=python, model=model)
