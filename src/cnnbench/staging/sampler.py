"""Make the library that samples the instances, from native/sampler.c, where their C library is: on this machine."""

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.cache import MOVE, install_directory
from cnnbench.base.checkout import REPOSITORY
from cnnbench.base.disk import require_loadable
from cnnbench.base.errors import CnnbenchError, UsageError

VARIABLE = "CNNBENCH_SAMPLER"
"""Environment variable: the library, where it is made already (the images have it), or OFF."""
OFF = "off"
"""The value of it with which nothing is sampled, and the precision is proven by a trace."""
LIBRARY = "libcnnbench-sampler.so"
SOURCE = REPOSITORY / "native" / "sampler.c"
COMPILE = REPOSITORY / "native" / "compile-sampler.sh"


@dataclass(frozen=True)
class Sampler:
    """What samples the instances: the library, or else the compiler that makes it, or else why there is neither."""

    library: Path | None = None
    compiler: str = ""
    reason: str = ""


NO_SAMPLER = Sampler(reason="nothing was started")
"""That of a run that ends before it has any."""


def find_sampler(environ: Mapping[str, str]) -> Sampler:
    """Return the sampler that the environment names, or what would make it; raise UsageError for a bad name."""
    if given := environ.get(VARIABLE):
        return _given_sampler(given)
    if platform.machine() != "x86_64":
        return Sampler(reason=f"the sampler reads code of x86-64, and this is {platform.machine()}")
    names = [environ["CC"]] if environ.get("CC") else ["cc", "gcc", "clang"]
    compiler = next((path for name in names if (path := shutil.which(name, path=environ.get("PATH")))), "")
    reason = "" if compiler else f"no C compiler is here to make the sampler with ({', '.join(names)})"
    return Sampler(compiler=compiler, reason=reason)


def stage_sampler(found: Sampler, cache: Path) -> Sampler:
    """Return a sampler with its library, made and kept in the cache, or with the reason why that could not be."""
    compiler = found.compiler
    if not compiler:
        return found
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    libc = "-".join(platform.libc_ver())
    what = (compiler.encode(), version, libc.encode(), SOURCE.read_bytes(), COMPILE.read_bytes())
    digest = hashlib.sha256(b"\0".join(what)).hexdigest()[:12]
    try:
        made = install_directory(lambda place: _compile(compiler, place), cache / "native" / f"sampler-{digest}")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        return Sampler(reason=f"{compiler} could not make the sampler: {said}")
    except CnnbenchError as error:
        return Sampler(reason=f"the sampler could not be kept: {error}")
    return Sampler(made / LIBRARY)


def _given_sampler(given: str) -> Sampler:
    if given == OFF:
        return Sampler(reason=f"{VARIABLE}={OFF}")
    library = Path(given).absolute()
    if not library.is_file():
        raise UsageError(
            f"{VARIABLE}={given}: no such file; leave it out to have the sampler made here, or give {OFF} to go without"
        )
    return Sampler(library)


def _compile(compiler: str, place: Path) -> None:
    require_loadable(place, MOVE)
    subprocess.run(["sh", str(COMPILE), str(place / LIBRARY), compiler], capture_output=True, text=True, check=True)
