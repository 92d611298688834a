"""Put the workers of a run into enclaves: render and sign each one's manifest, and say what starts it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.cases.precisions import Precision
from cnnbench.launch.gramine import (
    GRAMINE,
    EnclaveWorker,
    enclave_command,
    plan_enclave,
    render_manifest,
    sign_command,
)
from cnnbench.launch.local import WorkerLaunch
from cnnbench.launch.trusted import TrustedFile, hash_files
from cnnbench.worker.spec import WorkerSpec

APPLICATION = "worker"
"""What a worker's manifest in its directory is called: `worker.manifest`."""


@dataclass(frozen=True)
class Enclaves:
    """What the enclaves of one run have in common.

    `roots`: the directories that workers run on. `trusted`: all files of these and the model's, hashed. `key`: the file
    of what signs them; None where they are only rendered.
    """

    template: str
    precision: Precision
    python: Path
    roots: Sequence[Path]
    trusted: Sequence[TrustedFile] = field(repr=False)
    model_bytes: int
    gramine: Path = GRAMINE
    wrap_key: Path | None = None
    key: Path | None = None

    def enclose(self, launch: WorkerLaunch, spec: WorkerSpec, directory: Path) -> WorkerLaunch:
        """Return the launch of a worker's enclave in place of the worker's own; its spec is in `directory` already.

        The worker's environment goes into the manifest. Raises CnnbenchError when signing fails.
        """
        assert self.key is not None
        for instance in spec.instances:
            Path(spec.logs, f"instance-{instance.index}").mkdir(exist_ok=True)
        application = directory / APPLICATION
        application.with_suffix(".manifest").write_text(self.render(spec, directory, launch.environment))
        run_tool(sign_command(application, self.key))
        cpus = [cpu for instance in spec.instances for cpu in instance.cpus]
        return replace(launch, command=enclave_command(application, cpus), environment=tool_environment())

    def render(self, spec: WorkerSpec, directory: Path, environment: Mapping[str, str]) -> str:
        """Return the manifest of a worker whose spec is in `directory`."""
        spec_file = directory / "spec.json"
        worker = EnclaveWorker(
            spec=spec,
            spec_file=spec_file,
            python=self.python,
            environment=environment,
            precision=self.precision,
            roots=self.roots,
            trusted=[*self.trusted, *hash_files([spec_file])],
            wrap_key=self.wrap_key,
        )
        enclave = plan_enclave([len(one.cpus) for one in spec.instances], spec.batch_size, self.model_bytes)
        return render_manifest(self.template, worker, enclave, gramine=self.gramine)


def tool_environment() -> dict[str, str]:
    """Return the environment of Gramine's tools, some of which are programs of the system's Python, not of ours."""
    ours = str(Path(sys.prefix, "bin"))
    places = [place for place in os.environ["PATH"].split(os.pathsep) if place != ours]
    return {"PATH": os.pathsep.join(places), "HOME": "/tmp"}  # noqa: S108 - the container's own


def run_tool(command: Sequence[str]) -> None:
    """Run one of Gramine's tools; raise CnnbenchError with the end of what it prints when it fails."""
    done = subprocess.run(
        command, env=tool_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise CnnbenchError(f"`{' '.join(command)}` failed with exit code {done.returncode}: {last or '(no output)'}")
