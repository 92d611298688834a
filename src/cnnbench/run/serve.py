"""Run one case inside a container and hand its logs over: what an image's entry point does.

The case and its parameters come as environment variables. However the run ends, everything that it left is written as a
tar archive (handover.py) into the FIFO EXPORT, once somebody reads there. A container that nobody attends then waits to
be removed. Where nobody can reach into it, as in a pod, the archive goes into a file or is printed, and it ends.
"""

import errno
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError, InvalidMeasurementError, TimeUpInterrupt, UsageError
from cnnbench.base.progress import bytes_text, listening
from cnnbench.base.signals import INTERRUPTED, end_by_exceptions, time_limit
from cnnbench.cases.case import FIXED_BY_NAME, TestCase
from cnnbench.cases.parameters import default_text
from cnnbench.cases.variables import STATUS_VARIABLE
from cnnbench.cases.workload import Workload, load_workload
from cnnbench.launch.container import EXPORT, SHM
from cnnbench.launch.mpi import refuse_in_container
from cnnbench.machine.sgx import HOST_SGX, SgxRoots
from cnnbench.results.kpi_text import write_logs
from cnnbench.run.enclaves import TEMPLATE, enclose_job
from cnnbench.run.energy import NO_ENERGY
from cnnbench.run.handover import print_archive, save_archive, write_archive
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import Job, plan_case, prepare_job
from cnnbench.run.measurement import DEFAULT_HANG_S, ENCLAVE_HANG_S, Measurement, MeasurementKind
from cnnbench.run.native import choose_engine
from cnnbench.run.watching import reporter_in_container

WORKLOAD_VARIABLE = "CNNBENCH_WORKLOAD"
"""Environment variable of an image: its workload's directory."""

GRAMINE_VARIABLE = "CNNBENCH_GRAMINE"
"""Environment variable of an image, set where cases run in enclaves: the version of Gramine in it, or none."""

GROWING = ("datasets", "models", "prepared")
"""The directories of a cache in which more is made for a case that is not as the image's."""

ATTENDED_VARIABLE = "CNNBENCH_ATTENDED"
"""Environment variable: set by who holds this container's standard input open for as long as it is to run."""

HANG_VARIABLE = "CNNBENCH_HANG_AFTER"
"""Environment variable: `cnnbench case --hang-after`."""


MOUNTED_CACHE = Path("/mnt/cache")
"""Where a volume has more of what a cache holds (GROWING), read-only, beside what the image has."""

PRINT = "-"


@dataclass(frozen=True)
class Unreached:
    """How a case is run where nobody can reach into the container.

    `export`: the file that the archive of its logs goes into; PRINT to print it. `require`: raises CnnbenchError where
    the machine, or the cache in this directory, is not what the run was asked for on. `timeout_s`: how long it takes
    at the most.
    """

    export: str
    require: Callable[[Path], None] = lambda _cache: None
    timeout_s: float | None = None


def serve_case(
    environ: Mapping[str, str],
    fifo: Path = EXPORT,
    sgx: SgxRoots = HOST_SGX,
    choose: Callable[[Job, Path], MeasurementKind] = lambda _job, _cache: Measurement,
    unreached: Unreached | None = None,
) -> int:
    """Run the case that the environment describes, hand its logs over and return its exit code.

    Where nobody can reach into the container, return 0 once they are handed over: the exit code is in them.
    """
    end_by_exceptions()
    attended = bool(environ.get(ATTENDED_VARIABLE))
    if attended:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as directory:
        logs = Path(directory) / "logs"
        logs.mkdir()
        require, timeout_s = (unreached.require, unreached.timeout_s) if unreached else (None, None)
        with time_limit(timeout_s):
            status, error = _run(environ, Path(directory), logs, sgx, choose, require)
        at_end = signal.SIG_IGN if attended or unreached else _exit_with(status)
        for number in (signal.SIGINT, signal.SIGTERM):  # the run is over: its logs go out whole
            signal.signal(number, at_end)
        if error:
            print(f"cnnbench: {error}", file=sys.stderr, flush=True)
        if not attended and not error:
            print((logs / "kpi.log").read_text(), end="", flush=True)
        if unreached:
            if unreached.export == PRINT:
                print_archive(sys.stdout, logs, status, error)
            else:
                save_archive(Path(unreached.export), logs, status, error)
            return 0
        while True:
            try:
                with fifo.open("wb") as stream:  # this waits for a reader
                    write_archive(stream, logs, status, error)
                break
            except BrokenPipeError:
                print("cnnbench: who read the logs has gone; waiting for another", file=sys.stderr, flush=True)
    if not attended:
        signal.pause()
    return status


def _exit_with(status: int) -> Callable[[int, FrameType | None], NoReturn]:
    return lambda _number, _frame: sys.exit(status)


def _end_with_stdin() -> None:
    """End the container with who attends to it, however that ends: nobody else would."""
    while os.read(0, 4096):
        pass
    os._exit(INTERRUPTED)


def _run(
    environ: Mapping[str, str],
    scratch: Path,
    logs: Path,
    sgx: SgxRoots,
    choose: Callable[[Job, Path], MeasurementKind],
    require: Callable[[Path], None] | None,
) -> tuple[int, str]:
    """Run the case; return its exit code, and why there is no result if there is none."""
    try:
        if MOUNTED_CACHE.is_dir():
            together = overlay_cache(cache_root(environ), scratch / "mounted", MOUNTED_CACHE)
            environ = {**environ, "CNNBENCH_CACHE": str(together)}
        if require:
            require(cache_root(environ))
        directory = Path(environ.get(WORKLOAD_VARIABLE, ""))
        case = _case_of(environ, load_workload(directory))
        planned = plan_case(directory, case.name, environ, {})
        refuse_in_container(planned.ranks)
        job = prepare_job(planned, environ, enclaves=True)
        cache, enclaves = overlay_cache(cache_root(environ), scratch / "cache"), None
        hang_s = float(environ.get(HANG_VARIABLE) or (ENCLAVE_HANG_S if case.sgx else DEFAULT_HANG_S))
        kind = choose(job, cache)
        job = choose_engine(job, cache, hang_s, kind, in_image=True)
        if environ.get(ATTENDED_VARIABLE):  # by who reads energy from outside
            job = replace(job, energy=NO_ENERGY)
        inputs = stage_inputs(job, cache, in_image=True)
        if case.sgx:
            job, inputs, enclaves = enclose_job(job, inputs, directory / TEMPLATE, scratch, sgx)
        run = Measurement(job, inputs, logs, hang_s, enclaves) if enclaves else kind(job, inputs, logs, hang_s)
        reporter = reporter_in_container(environ.get(STATUS_VARIABLE, ""))
        with listening(reporter.progress):
            result = run.run(reporter)
        write_logs(result, logs, result.exit_code)
    except CnnbenchError as error:
        return error.exit_code, str(error)
    except OSError as error:  # what there is of the logs is still handed over
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, None):  # numpy's have none
            return CnnbenchError.exit_code, str(error)
        free, where = bytes_text(shutil.disk_usage(scratch).free), tempfile.gettempdir()
        option = "--shm-size ..." if where == SHM else f"--tmpfs {where}:size=..."
        return InvalidMeasurementError.exit_code, (
            f"writing in the container failed: {error}; its {where} has {free} left, "
            f'which DOCKER_OPTIONS="{option}" sets'
        )
    except TimeUpInterrupt as error:
        return InvalidMeasurementError.exit_code, f"{error}, before anything was measured"
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted before anything was measured"
    return result.exit_code, ""


def _case_of(environ: Mapping[str, str], workload: Workload) -> TestCase:
    """Return the case that WORKLOAD, FUNCTION, MODE, PRECISION, CASE_TYPE and, of several, TOPOLOGY name."""
    asked = environ.get("WORKLOAD") or workload.slug
    if asked != workload.slug:
        raise UsageError(f"WORKLOAD={asked}: this image has {workload.slug}")
    names = FIXED_BY_NAME if workload.topologies else FIXED_BY_NAME[:-1]
    fixed = {name.lower(): environ.get(name) or default_text(name) for name in names}
    fixed["function"] = environ.get("FUNCTION") or workload.function
    name = TestCase(workload.slug, sgx=bool(environ.get(GRAMINE_VARIABLE)), **fixed).name  # type: ignore[arg-type]
    return workload.parse_case(name)


def overlay_cache(cache: Path, scratch: Path, *more: Path) -> Path:
    """Return a cache in `scratch` with all that a read-only one has, in which another model can be made.

    `more`: where more of what grows is; of what two have, the first one's counts.
    """
    for path in cache.glob("*"):
        if path.name not in GROWING:
            scratch.mkdir(parents=True, exist_ok=True)
            (scratch / path.name).symlink_to(path)
    for name in GROWING:
        (scratch / name).mkdir(parents=True)
        for path in (path for one in (cache, *more) for path in (one / name).glob("*")):
            if not (scratch / name / path.name).is_symlink():
                (scratch / name / path.name).symlink_to(path)
    return scratch
