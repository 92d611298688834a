"""Write manifests as a kustomize base, for those who apply them themselves."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from cnnbench.base.disk import explain_refusals, make_directory
from cnnbench.base.errors import UsageError
from cnnbench.fleet.manifests import Manifest

KUSTOMIZATION = "kustomization.yaml"
MARK = "# Written by `cnnbench fleet --render`; it is replaced as a whole when that is called again.\n"
REMEDY = "name another directory after --render"


def write_base(directory: Path, manifests: Sequence[Manifest]) -> None:
    """Write a kustomize base, whole or not at all; raise UsageError where the directory has anything else."""
    require_own(directory)
    building = directory.with_name(f".{directory.name}.{os.getpid()}")
    before = directory.with_name(f".{directory.name}.before")
    with explain_refusals(directory, REMEDY, lambda: shutil.rmtree(building, ignore_errors=True)):
        make_directory(building, REMEDY)
        names = [_write(building, manifest) for manifest in manifests]
        content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(names)}
        (building / KUSTOMIZATION).write_text(f"{MARK}{_dump(content)}", encoding="utf-8")
        shutil.rmtree(before, ignore_errors=True)
        if directory.exists():
            directory.rename(before)
        building.rename(directory)
        shutil.rmtree(before, ignore_errors=True)


def require_own(directory: Path) -> None:
    """Raise UsageError for a directory that has other files than a base that was written here."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UsageError(f"--render {directory}: is a file; {REMEDY}")
    kustomization = directory / KUSTOMIZATION
    if not any(directory.iterdir()):
        return
    text = kustomization.read_text(encoding="utf-8", errors="replace") if kustomization.is_file() else ""
    if not text.startswith(MARK):
        raise UsageError(f"--render {directory}: is not empty, and nothing that was rendered before; {REMEDY}")
    known = {KUSTOMIZATION, *yaml.safe_load(text)["resources"]}
    if foreign := sorted(path.name for path in directory.iterdir() if path.name not in known):
        raise UsageError(f"--render {directory}: has {foreign[0]}, which was not rendered; move it, or {REMEDY}")


def _write(directory: Path, manifest: Manifest) -> str:
    name = f"{manifest['kind'].lower()}-{manifest['metadata']['namespace']}-{manifest['metadata']['name']}.yaml"
    (directory / name).write_text(_dump(manifest), encoding="utf-8")
    return name


def _dump(content: Manifest) -> str:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, width=120)


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice: aliases are hard to read."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """Ignore them all."""
        return True
