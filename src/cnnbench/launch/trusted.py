"""Hash the files that an enclave may open unchanged only, and check a manifest's hashes against what is there."""

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.cache import digest_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNREAD = frozenset({"include"})
"""Directories that no worker reads: C headers, which are nearly half of a TensorFlow environment's files."""


@dataclass(frozen=True)
class TrustedFile:
    """One file by the path that it is opened by (a link is not followed in the name), and its digest."""

    path: Path
    sha256: str


def hash_files(roots: Iterable[Path], unread: Collection[Path] = ()) -> list[TrustedFile]:
    """Return the readable files of all roots (files, or directories with all below them) in the order of their paths.

    `unread`: directories that are left out where they lie below a root. A link to a file counts as a file of its own; a
    link to a directory below a root is not entered, as Gramine's own tools do not enter one either.
    """
    paths = sorted({path for root in roots for path in _walk(root, unread)})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [TrustedFile(*pair) for pair in zip(paths, pool.map(digest_file, paths), strict=True)]


def library_files(directories: Iterable[Path]) -> list[Path]:
    """Return the shared libraries that lie in these directories themselves, where the dynamic linker looks."""
    return sorted(path for directory in directories for path in directory.glob("*.so*") if path.is_file())


def check_manifest(text: str, root: Path = Path("/")) -> list[str]:
    """Return what is wrong with a manifest's trusted files when its paths begin at `root`; empty when all is well."""
    files = _listed(text)
    if not files:
        return ["sgx.trusted_files: none"]
    problems = [_problem(file, root) for file in files]
    return [problem for problem in problems if problem]


def count_trusted(text: str) -> int:
    """Return how many files a manifest trusts."""
    return len(_listed(text))


def _listed(text: str) -> list[object]:
    return tomllib.loads(text).get("sgx", {}).get("trusted_files", [])


def _problem(file: object, root: Path) -> str:
    """Say what is wrong with one entry of sgx.trusted_files; empty when nothing is."""
    if not isinstance(file, dict) or not re.fullmatch("[0-9a-f]{64}", str(file.get("sha256"))):
        return f"{file}: has no SHA-256"
    uri = str(file.get("uri"))
    if not uri.startswith("file:/"):
        return f"{uri}: needed is file: and an absolute path"
    path = root / uri.removeprefix("file:/")
    if not path.is_file():
        return f"{path}: not there"
    if (found := digest_file(path)) != file["sha256"]:
        return f"{path}: SHA-256 is {found}, needed {file['sha256']}"
    return ""


def _walk(root: Path, unread: Collection[Path]) -> Iterator[Path]:
    if not root.is_dir():
        yield root
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in UNREAD and Path(directory, name) not in unread]
        for path in (Path(directory, name) for name in files):
            if path.is_file() and os.access(path, os.R_OK):
                yield path
