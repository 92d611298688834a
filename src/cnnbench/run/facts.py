"""Gather what a result records beside its figures: the host, the software, and what a reader should know."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnbench.launch.instances import Plan
from cnnbench.machine.facts import machine_facts
from cnnbench.machine.topology import format_cpu_list
from cnnbench.run.energy import ENERGY
from cnnbench.run.inputs import Inputs
from cnnbench.run.job import Job


def host_facts(job: Job, load_before: float) -> dict[str, str]:
    """Return the facts about this host and this run on it; `load_before` is its load average from before the run."""
    facts = machine_facts() | {
        "CPUs used": format_cpu_list(job.plan.cpus),
        "load average before": f"{load_before:.2f}",
        "LD_LIBRARY_PATH": job.environment.get("LD_LIBRARY_PATH"),
        ENERGY: job.energy.describe(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def software_facts(results: list[dict[str, Any]], trace: Path) -> dict[str, str]:
    """Return the versions that the instances report, and that of oneDNN in its trace."""
    facts: dict[str, str] = dict(results[0]["versions"]) if results else {}
    if trace.is_file():
        with trace.open(errors="replace") as lines:
            version = next((line.split(",")[-1] for line in lines if ",info,oneDNN v" in line), "")
        facts |= {"oneDNN": version.strip().removeprefix("oneDNN ")} if version else {}
    return facts


def input_facts(inputs: Inputs) -> dict[str, str]:
    """Return the digests of what a run reads."""
    facts: dict[str, str] = {}
    if inputs.model is not None:
        facts["model SHA-256"] = inputs.model.source_sha256
        if inputs.model.converted_sha256:
            facts["converted graph SHA-256"] = inputs.model.converted_sha256
            facts |= {"calibrated on": inputs.model.calibration} if inputs.model.calibration else {}
        if inputs.model.int8_sha256:
            facts["int8 graph SHA-256"] = inputs.model.int8_sha256
            facts["calibrated on"] = inputs.model.calibration
        if compiled := inputs.model.compiled:
            facts["compiled file SHA-256"] = compiled.sha256
            facts["compiled for"] = compiled.describe()
    if inputs.images is not None:
        facts["dataset SHA-256"] = inputs.images.sha256
    return facts


def instance_facts(plan: Plan, figures: list[dict[str, float | None]]) -> dict[str, str]:
    """Return a line for each of several instances: its part of the throughput, its latency, and where it ran."""
    if len(figures) == 1:
        return {}
    lines = {}
    for one, figure in zip(plan.instances, figures, strict=True):
        latency = figure["latency_mean_ms"]
        step = "no whole step in the window" if latency is None else f"{latency:.4g} ms in the mean"
        where = f"CPUs {format_cpu_list(one.cpus)}" + (f" of {one.host}" if one.host else "")
        lines[f"instance {one.index}"] = f"{figure['images_per_s']:.4g} img/s, {step}, {where}"
    return lines


def run_notes(notes: Sequence[str], results: list[dict[str, Any]], *, threads_shared: bool) -> list[str]:
    """Return the notes of a job and what is to be noted of how its instances shared cores and had memory bound."""
    found = list(notes)
    if threads_shared:
        found.append("the instances of a process share its intra-op threads, which are pinned to the cores of them all")
    unbound = sorted({str(result["memory"]) for result in results if not result["memory"].startswith("bound")})
    return found + [f"memory {text}" for text in unbound]
