"""Make virtual environments from lock files, with uv.

`python -m cnnbench.staging.installer NAME[=INDEX]...` does so by the names of lock files, for an image before the rest
of this package is copied there, and for script/setup.sh.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cnnbench.base.cache import MOVE, cache_root, explain_disk_errors, install_directory, locked
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.disk import require_loadable
from cnnbench.base.errors import CnnbenchError, exit_code_of
from cnnbench.staging.pip_settings import has_local_places, read_pip_options, uv_environment

REQUIREMENTS = REPOSITORY / "requirements"

_SHOWN = ("Downloading", "Prepared", "Installed", "Bytecode compiled")
"""How the lines of uv's begin that say how far it is."""


def environment_of(lock: Path, cache: Path) -> Path:
    """Return where a lock file's environment is: its name tells the lock file's name and content, and the Python."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    return cache / "environments" / f"{lock.stem}-cp{sys.version_info[0]}{sys.version_info[1]}-{digest}"


def make_environment(lock: Path, cache: Path, index: str = "", lean: bool = False) -> Path:
    """Return the Python of a lock file's environment, which is made as `install` says when it is not there yet.

    It may be renamed when it is made, as only its Python is used.
    """
    destination = environment_of(lock, cache)
    python = destination / "bin" / "python"
    if not python.exists():
        _discard_orphan(destination, python)

    def make(directory: Path) -> None:
        require_loadable(directory, MOVE)
        print(
            f"making the environment of {lock.stem}: this downloads and unpacks a framework",
            file=sys.stderr,
            flush=True,
        )
        base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        interpreter = str(base if base.exists() else sys.executable)
        options = read_pip_options()
        venv = [interpreter, "-I", "-m", "venv", "--without-pip", str(directory)]
        _run(venv, lock, uv_environment(options, os.environ))
        install(directory, lock, cache, index, lean)

    install_directory(make, destination)
    return python


def install(prefix: Path, lock: Path, cache: Path, index: str = "", lean: bool = False) -> None:
    """Install a lock file into the environment at `prefix`; a `lean` one is without what no program reads.

    `index`: where else its packages are, if not all are where pip looks. uv keeps what it has downloaded in `cache`,
    and links an environment's files from there, unless they would be on two file systems.
    """
    options = read_pip_options()
    environ = uv_environment(options, os.environ) | _store(cache, prefix)
    # uv's own files are not read, as pip's are: the directory that the caller is in may have some of another project.
    command = [_find_uv(), "pip", "install", "--no-config", "--color", "never", "--python", f"{prefix}/bin/python"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--compile-bytecode"]
    command += ["--requirement", str(lock)]
    attempts = [("", environ)]
    if has_local_places(options):
        # pip goes on without an index that does not answer; uv ends there.
        notice = f"{lock.name}: not to be had with the network: trying the directories where pip looks alone"
        attempts.append((notice, environ | {"UV_OFFLINE": "1"}))
    if index:
        # Only now, as every package would be looked for there too, and where it cannot be reached, waited for.
        notice = f"{lock.name}: not all of it where pip looks: trying {index} as well"
        indexes = f"{environ.get('UV_INDEX', '')} {index}".strip()
        attempts.append((notice, environ | {"UV_INDEX": indexes, "UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "30"}))
    failures: list[str] = []
    for notice, variables in attempts:
        if notice:
            print(notice, file=sys.stderr, flush=True)
        try:
            _run(command, lock, variables)
        except CnnbenchError as error:
            failures.append(str(error))
        else:
            break
    else:
        raise CnnbenchError("\n".join(failures))
    if lean:
        _make_lean(prefix)


def _find_uv() -> str:
    """Return the program that came with the controller's own packages."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise CnnbenchError(f"{uv}: not found; script/setup.sh installs it (requirements/installer.lock)")
    return str(uv)


def _store(cache: Path, prefix: Path) -> dict[str, str]:
    """Return the variables that say where uv keeps what it downloads, and how an environment gets its files."""
    given = os.environ.get("UV_CACHE_DIR")
    store = Path(given) if given else cache / "uv"
    existing = next(parent for parent in (store, *store.absolute().parents) if parent.exists())
    variables = {"UV_CACHE_DIR": str(store)}
    if os.environ.get("UV_NO_CACHE") or not os.access(existing, os.W_OK):
        variables, existing = {"UV_NO_CACHE": "1"}, Path(tempfile.gettempdir())
    if existing.stat().st_dev != prefix.stat().st_dev:
        variables["UV_LINK_MODE"] = "copy"
    return variables


def _make_lean(prefix: Path) -> None:
    """Remove headers, static libraries and the packages' own tests."""
    for directory in [*prefix.glob("lib/**/include"), *prefix.glob("lib/**/tests")]:
        # A directory inside one that is gone already, or a package that is called so.
        if directory.is_dir() and (directory.name == "tests" or not (directory / "__init__.py").exists()):
            shutil.rmtree(directory)
    for library in prefix.glob("lib/**/*.a"):
        library.unlink()


def _discard_orphan(destination: Path, python: Path) -> None:
    """Remove an environment whose Python, a link to the one that it was made with, leads nowhere any more."""
    with explain_disk_errors(destination), locked(destination):
        if not python.exists() and destination.is_dir():  # another process may have made it anew meanwhile
            print(f"{destination}: the Python that it was made with is gone: making it anew", file=sys.stderr)
            shutil.rmtree(destination)


def _run(command: list[str], lock: Path, environ: Mapping[str, str]) -> None:
    """Run a step; show uv's own bars on a terminal, and its downloads and installations as lines anywhere else."""
    terminal = sys.stderr.isatty()
    last: deque[str] = deque(["it says why above"] if terminal else [], maxlen=8)
    with subprocess.Popen(
        command,
        env=environ,
        stdout=sys.stderr if terminal else subprocess.PIPE,
        stderr=None if terminal else subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            for line in process.stdout or ():
                last.append(line.rstrip())
                if line.startswith(_SHOWN):
                    print(f"  {line.strip()[:110]}", file=sys.stderr, flush=True)
            code = process.wait()
        except BaseException:  # interrupted: neither the step nor what it has started may go on
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if code != 0:
        if any("No space left on device" in line for line in last):
            last.append(f"what is downloaded and installed goes into the cache: make room, or {MOVE}")
        raise CnnbenchError(
            f"making the environment of {lock.name} failed at `{' '.join(command)}`:\n" + "\n".join(last)
        )


def main() -> None:
    """Install the lock files that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.staging.installer")
    parser.add_argument("locks", nargs="*", metavar="NAME[=INDEX]", help="a lock file, and where else its packages are")
    parser.add_argument("--here", action="store_true", help="into this Python's environment, not one for each")
    parser.add_argument("--lean", action="store_true", help="without headers, static libraries and tests")
    arguments = parser.parse_args()
    cache = cache_root(os.environ)
    for name, _, index in (text.partition("=") for text in arguments.locks):
        lock = REQUIREMENTS / f"{name}.lock"
        if arguments.here:
            install(Path(sys.prefix), lock, cache, index, arguments.lean)
        else:
            make_environment(lock, cache, index, arguments.lean)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
