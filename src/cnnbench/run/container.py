"""Run a planned case in a container and make a result of how that ends.

The container gets the plan's CPUs and memory nodes and the parameters as asked for; it plans, measures and judges the
case by itself, with all the checks that a run on this machine has (serve.py). Where it measures a server, that runs in
a second container, beside it, and both are on an internal network of the run's own.
"""

import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, SkippedError, TimeUpInterrupt, UsageError
from cnnbench.base.progress import Progress, bytes_text
from cnnbench.base.signals import INTERRUPTED, time_limit
from cnnbench.cases.precisions import missing_for_precision
from cnnbench.cases.variables import IN_CONTAINER, NEIGHBOUR_VARIABLE, STATUS_VARIABLE
from cnnbench.launch.container import (
    BUILD_LABEL,
    OWNER_LABEL,
    SHM,
    Container,
    ContainerSpec,
    Owner,
    internal_network,
    network_command,
    read_label,
    remove_orphans,
    run_command,
    run_engine,
)
from cnnbench.launch.mpi import refuse_in_container
from cnnbench.machine.contention import with_siblings
from cnnbench.machine.facts import ALLOCATION, ALLOCATION_VARIABLE, HOST_NAME, read_host_name
from cnnbench.machine.host import read_available_bytes
from cnnbench.machine.sgx import HOST_SGX, SgxRoots, missing_on_host, require_sgx
from cnnbench.machine.topology import UNKNOWN_NODE, read_topology
from cnnbench.results.kpi_text import STATUS, write_logs
from cnnbench.results.record import SEEN, TIMEOUT, Criterion, RunResult, load_run
from cnnbench.run.energy import ENERGY
from cnnbench.run.energy_seen import watch_energy
from cnnbench.run.handover import ERROR
from cnnbench.run.images import (
    GRAMINE_LABEL,
    NO_GRAMINE,
    REVISION_LABEL,
    SOURCES_LABEL,
    ImageOptions,
    digest_package,
    inference_image,
)
from cnnbench.run.inputs import NOTHING_STAGED
from cnnbench.run.job import PLATFORM_VARIABLE, PlannedCase, find_energy_sources
from cnnbench.run.judging import apply_outside, judge_run
from cnnbench.run.measurement import new_logs_directory
from cnnbench.run.record import EnergySeen, Outside, Record, describe_run, write_outside
from cnnbench.run.serve import ATTENDED_VARIABLE, HANG_VARIABLE
from cnnbench.run.watching import MARK, SILENT, Reporter, read_line
from cnnbench.staging.archive import DamagedError, unpack

DOCKER_OPTIONS_VARIABLE = "DOCKER_OPTIONS"
"""Environment variable: more options of the engine's run command."""

FILES = {
    "MODEL": "/mnt/model.pb",
    "WEIGHTS": "/mnt/weights",
    "WRAP_KEY": "/mnt/wrap.key",
    "NETWORK_FILE": "/mnt/network",
    "DATASET": "/mnt/images",
    "USER_CONF": "/mnt/user.conf",
}
"""The parameters that name a file or directory of the host's, and where that is in the container; WEIGHTS keeps its
suffix, and a NETWORK_FILE comes with its directory, as parts of it may lie beside."""
METER = "ENERGY_METER"
"""The parameter that a container does not get: energy is read here."""
LOG, FACTS, ARCHIVE = "container.log", "container.json", "export.tar"
SERVER_LOG, SERVER_MEMORY = "container-server.log", "server's container memory"
NEIGHBOUR = f"{SHM}/cnnbench-neighbour"
"""Where a container asks the one beside it, in the shared memory that both have."""

MEMORY_SHARE = 0.95
"""What part of the memory that is free now a container may take, so that it runs out of memory and not the host."""
PIDS_BASE, PIDS_PER_CPU = 1024, 4
"""Threads a container may have: the engines' pools have one for each CPU of the machine, in every process."""


@dataclass(frozen=True)
class ContainerOptions:
    """How containers are run.

    `cli`: the engine's command line. `extra`: more options of its run command. `hang_s`: None for what the container
    takes by itself.
    """

    cli: Sequence[str]
    images: ImageOptions
    extra: Sequence[str]
    hang_s: float | None
    pull_timeout_s: float | None


class ContainerRun:
    """One run of a planned case in a container; its logs go below `root`."""

    def __init__(self, planned: PlannedCase, options: ContainerOptions, root: Path, sgx: SgxRoots = HOST_SGX) -> None:
        options.images.check()
        refuse_in_container(planned.ranks)
        for name in ("MODEL_REPOSITORY", "TRITON_SERVER"):
            if getattr(planned.parameters, name.lower()):
                raise UsageError(f"{name}: a container has its own server, whose models pass with it; leave it out")
        self._planned, self._options, self._root, self._sgx = planned, options, root, sgx
        self._started = datetime.now(timezone.utc)
        self._run_id = f"{self._started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._energy = find_energy_sources(planned, os.environ)
        self._energy_seen: EnergySeen | None = None
        self._spec = self._plan_container()
        self._reporter = SILENT

    def _plan_container(self, sys_nice: bool = True) -> ContainerSpec:
        planned, plan = self._planned, self._planned.plan
        nodes = read_topology().memory_nodes(planned.cpus)
        environment = {"WORKLOAD": planned.workload.slug, **planned.requested}
        environment.pop(METER, None)
        environment[ATTENDED_VARIABLE] = "1"
        environment[STATUS_VARIABLE] = IN_CONTAINER
        if self._options.hang_s is not None:
            environment[HANG_VARIABLE] = f"{self._options.hang_s:g}"
        if code := os.environ.get(PLATFORM_VARIABLE):
            environment[PLATFORM_VARIABLE] = code
        mounts = {}
        for name, inside in FILES.items():
            path = Path(getattr(planned.asked, name.lower()))
            if not path.is_absolute():  # a MODEL may be the name of an artefact
                continue
            if name == "NETWORK_FILE":
                environment[name], mounts[inside] = f"{inside}/{path.name}", path.parent
            else:
                environment[name] = f"{inside}{path.suffix}" if name == "WEIGHTS" else inside
                mounts[environment[name]] = path
        device = self._sgx.device if planned.case.sgx else None
        memory_bytes = int(MEMORY_SHARE * read_available_bytes())
        if planned.clients:  # what the server reads and writes is where both have it; each has half of the memory
            environment |= {NEIGHBOUR_VARIABLE: NEIGHBOUR, "TMPDIR": SHM}
            memory_bytes //= 2
        return ContainerSpec(
            name=self._name,
            image=inference_image(
                planned.workload, planned.parameters.data_type, planned.case.sgx, self._options.images
            ),
            labels={BUILD_LABEL: str(self._root), OWNER_LABEL: Owner.of(os.getpid()).label},
            environment=environment,
            cpus=with_siblings(planned.cpus) & os.sched_getaffinity(0),
            nodes=frozenset() if UNKNOWN_NODE in nodes else nodes,
            memory_bytes=memory_bytes,
            pids=PIDS_BASE
            + PIDS_PER_CPU * (os.cpu_count() or 1) * len(plan.processes)
            + len(planned.measuring.instances),
            mounts=mounts,
            devices=[str(device)] if device else [],
            sys_nice=sys_nice,
            extra=self._options.extra,
            groups=[device.stat().st_gid] if device and device.exists() else [],
            network=self._network if planned.clients else "none",
            is_shared=planned.clients is not None,
        )

    @property
    def _name(self) -> str:
        return f"cnnbench-{self._run_id.lower()}"

    @property
    def _network(self) -> str:
        return f"{self._name}-network"

    @property
    def _server_spec(self) -> ContainerSpec:
        """The container that the server runs in, which is all that the other is but for what that is told to do."""
        program = ("python", "-I", "-m", "cnnbench.launch.beside", NEIGHBOUR)
        return replace(self._spec, name=f"{self._name}-server", environment={}, beside=self._name, program=program)

    def command(self) -> list[str]:
        """Return the command that starts the container."""
        return run_command(self._options.cli, self._spec)

    def commands(self) -> list[list[str]]:
        """Return the commands of a run: the one that starts the container, and those for a server beside it."""
        if not self._planned.clients:
            return [self.command()]
        cli = self._options.cli
        return [
            network_command(cli, self._network, self._spec.labels),
            self.command(),
            run_command(cli, self._server_spec),
        ]

    def run(self, timeout_s: float | None = None, reporter: Reporter = SILENT) -> tuple[RunResult, Path]:
        """Run the container to its end; return the result and the directory of its logs.

        An image that is not pulled in time gives an invalid result, and so does a container that fails, is killed,
        interrupted or not done in time. Raises CnnbenchError when there is no engine or image, what the case itself
        raised when it could not be run, and SkippedError before anything is started when this host or the image has not
        what enclaves need. `reporter` is told how far it is: what the container tells, on its standard error, as far as
        this program and the image's are of one version; a program started in it to look would run on its cores.
        """
        self._reporter = reporter
        remove_orphans(self._options.cli)
        try:
            if self._planned.case.sgx:
                self._require_sgx()
            self._provide_image()
        except TimeUpInterrupt as error:
            logs = self._make_logs()
            return self._record(self._reject(logs, None, f"pulling {self._spec.image}: {error}", {}), logs)
        logs = self._make_logs()
        write_outside(logs, Outside(record=self._describe()))  # what is left if this process is killed
        try:
            with time_limit(timeout_s):
                result = self._attend(logs)
        except KeyboardInterrupt as error:  # while there was nothing to fetch
            (logs / ARCHIVE).unlink(missing_ok=True)
            result = self._reject(logs, error, "interrupted while the container was being started or removed", {})
        except (SkippedError, UsageError):
            shutil.rmtree(logs.parent)  # nothing has been run
            raise
        return self._record(result, logs)

    def _make_logs(self) -> Path:
        return new_logs_directory(self._root, self._planned.case.name)

    def _record(self, result: RunResult, logs: Path) -> tuple[RunResult, Path]:
        write_logs(result, logs, result.exit_code)
        return result, logs

    def _provide_image(self) -> None:
        """Pull the image when it is not here and has a registry to come from; that may raise TimeUpInterrupt."""
        if self._has_image():
            return
        if not self._options.images.registry:
            raise CnnbenchError(
                f"{self._spec.image}: no such image; make it with `make` in the build directory (doc/containers.md)"
            )
        print(f"cnnbench: pulling {self._spec.image}", file=sys.stderr, flush=True)
        self._reporter.begin("pulling the image")
        with time_limit(self._options.pull_timeout_s, "PULL"):
            run_engine([*self._options.cli, "pull", self._spec.image], timeout_s=None)

    def _has_image(self) -> bool:
        return bool(run_engine([*self._options.cli, "images", "--quiet", self._spec.image]))

    def _require_sgx(self) -> None:
        """Raise SkippedError naming everything that is missing; an image is pulled only for a host that has it all."""
        planned = self._planned
        missing = [*missing_for_precision(planned.precision, planned.cpu.flags), *missing_on_host(self._sgx)]
        if not missing:
            self._provide_image()
        if self._has_image():
            missing += missing_in_image(self._options.cli, self._spec.image)
        require_sgx(planned.case.name, missing)

    def _attend(self, logs: Path) -> RunResult:
        """Start the container, wait for its logs, and make a result of what came."""
        archive, cli = logs / ARCHIVE, self._options.cli
        interrupt, broken, facts = None, "", self._facts()
        server: Container | None = None
        account: dict[str, Any] = {}
        with ExitStack() as stack:
            if self._planned.clients:
                stack.enter_context(internal_network(cli, self._network, self._spec.labels))
            stack.enter_context(watch_energy(self._energy, logs, self._planned.cpus, self._keep_energy))
            container = stack.enter_context(Container(cli, self._name, logs / LOG, self._take))
            self._reporter.begin("starting the container")
            is_running = self._start(container)
            if is_running and self._planned.clients:
                server = stack.enter_context(Container(cli, self._server_spec.name, logs / SERVER_LOG))
                server.start(run_command(cli, self._server_spec))
                if not server.wait_until_running() and container.inspect()[0].get("Running"):
                    broken = f"the engine could not start the server's container: {'; '.join(server.output)}"
            self._reporter.begin("running in the container")
            try:
                if not broken:
                    interrupt = container.fetch(archive)
            except OSError as error:
                broken = f"writing the logs to {archive} failed: {error.strerror}"
                archive.unlink()  # on a full disk the result needs its room
            state, complaint = container.inspect()
            if server is not None:
                served = server.inspect()[0]
                account = {"server": {"command": run_command(cli, self._server_spec), "state": served}}
                facts["container network"] = f"{self._network}, internal: the server is in {self._server_spec.name}"
                if served.get("OOMKilled"):
                    facts[SERVER_MEMORY] = f"ran out at the limit, {bytes_text(served['Memory'])}"
        if state:
            facts["container memory limit"] = bytes_text(state["Memory"])
        account = {"command": self.command(), "state": state, **account}
        (logs / FACTS).write_text(json.dumps(account, indent=1))
        if not broken:
            broken = self._unpack(archive, logs, state, complaint, container)
        if broken:
            (logs / STATUS).unlink(missing_ok=True)
            return self._reject(logs, interrupt, broken, facts)
        return self._read_result(logs, facts, state, interrupt)

    def _keep_energy(self, seen: EnergySeen) -> None:
        self._energy_seen = seen

    def _take(self, line: str) -> bool:
        """Tell what a line of the container's says of how far it is; return whether it is such a line.

        One of another version is none that can be read: that it runs is all that is told then.
        """
        if now := read_line(line):
            self._reporter.take(now)
        return line.startswith(MARK)

    @staticmethod
    def _unpack(archive: Path, logs: Path, state: dict[str, Any], complaint: str, container: Container) -> str:
        """Unpack what has come and remove the archive; return why that was not everything, if it was not.

        An archive that is cut off stays: what is whole in it can still be looked at.
        """
        try:
            unpack(archive, logs, progress=partial(Progress, stream=io.StringIO()))
        except DamagedError:
            if not archive.stat().st_size:
                archive.unlink()
            return _explain_end(state, complaint or container.export_complaint, container.output)
        except (CnnbenchError, OSError) as error:
            archive.unlink()  # on a full disk the result needs its room
            return f"unpacking the logs in {logs} failed: {error}"
        archive.unlink()
        return ""

    def _start(self, container: Container) -> bool:
        """Start the container, without the capability where the engine refuses it; return whether it was started.

        How it ends is judged later.
        """
        container.start(self.command())
        is_running = container.wait_until_running()
        if not is_running and container.was_refused_a_capability():
            container.remove()
            self._spec = self._plan_container(sys_nice=False)
            container.start(self.command())
            is_running = container.wait_until_running()
        return is_running

    def _read_result(
        self, logs: Path, facts: dict[str, str], state: dict[str, Any], interrupt: KeyboardInterrupt | None
    ) -> RunResult:
        """Return what the container made of the run, with what only this side knows; raise what it raised."""
        if (logs / ERROR).is_file():
            status, message = int((logs / STATUS).read_text()), (logs / ERROR).read_text()
            if memory := facts.get(SERVER_MEMORY):
                message = f"{message}; {SERVER_MEMORY} {memory}"
            if status in (INTERRUPTED, InvalidMeasurementError.exit_code):
                return self._reject(logs, interrupt, message, facts)
            self._reject(logs, interrupt, message, facts)  # whoever judges these logs again is told the same
            errors = {error.exit_code: error for error in (CnnbenchError, UsageError, SkippedError)}
            raise errors.get(status, CnnbenchError)(message)
        result = load_run(logs)
        notes = []
        if not self._spec.sys_nice:
            notes.append("the engine refused the capability SYS_NICE, without which memory cannot be bound")
        if result.plan["instances"] != json.loads(json.dumps(self._planned.plan.to_dict()))["instances"]:
            notes.append("the container planned other instances than this machine would: its cpuset differs")
        if facts["image sources"] != digest_package():
            notes.append(f"the image was made from other sources than this program, commit {facts['image made from']}")
        if state.get("OOMKilled"):  # an engine that has gone has no account to give
            facts["container memory"] = f"ran out at the limit, {bytes_text(state['Memory'])}"
        requested, failure = self._planned.requested, None
        effective = {name: requested[name] for name in FILES if self._spec.environment.get(name) in self._spec.mounts}
        if requested.get(METER):
            effective[METER] = requested[METER]
        if isinstance(interrupt, TimeUpInterrupt):
            failure = Criterion(name=TIMEOUT, passed=False, found=str(interrupt), needed="")
        outside = Outside(
            requested=requested,
            effective=effective,
            facts=facts,
            notes=tuple(notes),
            failure=failure,
            energy=self._energy_seen,
        )
        write_outside(logs, outside)
        return judge_run(logs) if self._energy_seen else apply_outside(result, outside)

    def _facts(self) -> dict[str, str]:
        cli, image = [*self._options.cli], self._spec.image
        identity = run_engine([*cli, "inspect", "--type", "image", "--format", "{{.Id}}", image])
        version = run_engine([*cli, "version", "--format", "{{.Server.Version}}"])
        told = self._energy.describe()
        allocation = os.environ.get(ALLOCATION_VARIABLE)
        return ({ENERGY: told} if told else {}) | {
            HOST_NAME: read_host_name(),  # a container has a name of its own
            **({ALLOCATION: allocation} if allocation else {}),
            "container image": f"{image} ({identity})",
            "image made from": read_label(cli, "image", image, REVISION_LABEL),
            "image sources": read_label(cli, "image", image, SOURCES_LABEL),
            "container engine": f"{Path(cli[0]).name} {version}",
        }

    def _reject(self, logs: Path, interrupt: KeyboardInterrupt | None, reason: str, facts: dict[str, str]) -> RunResult:
        """Return the result of a run whose container gave none, of which the time limit may be the deeper reason."""
        failure = Criterion(name="container", passed=False, found=reason, needed="")
        if isinstance(interrupt, TimeUpInterrupt):
            failure = Criterion(name=TIMEOUT, passed=False, found=str(interrupt), needed="")
            facts = facts | {SEEN: reason}
        write_outside(logs, Outside(record=self._describe(), facts=facts, failure=failure))
        return judge_run(logs)

    def _describe(self) -> Record:
        started = self._started.isoformat(timespec="seconds")
        return describe_run(self._planned, NOTHING_STAGED, self._run_id, started, {})


def missing_in_image(cli: Sequence[str], image: str) -> list[str]:
    """Return what an image lacks to run enclaves: Gramine, as its label tells; empty when it has that."""
    gramine = read_label(cli, "image", image, GRAMINE_LABEL)
    if not gramine:
        return [f"image {image}: has no label {GRAMINE_LABEL}: make it anew"]
    if gramine == NO_GRAMINE:
        return [f"image {image}: made with GRAMINE={NO_GRAMINE}: configure with -DGRAMINE=VERSION and make it anew"]
    return []


def _explain_end(state: dict[str, Any], complaint: str, output: Sequence[str]) -> str:
    """Say why a container has not handed its logs over."""
    last = f"; the last it printed: {output[-1]}" if output else ""
    if not state:
        return f"the container engine gave no account of the container: {complaint}{last}"
    if state["OOMKilled"]:
        return f"the container ran out of memory: its limit was {bytes_text(state['Memory'])}{last}"
    if state["Running"]:
        return f"the container runs, but hands no logs over{last}"
    if state["Status"] == "created":
        return f"the engine could not start the container: {state['Error'] or '; '.join(output)}"
    how = {137: "was killed (SIGKILL)", 143: "was terminated (SIGTERM)"}.get(state["ExitCode"])
    return f"the container {how or 'ended with exit code ' + str(state['ExitCode'])} before its logs were out{last}"
