"""Read the manifest of artefacts: where each comes from and how to know that it is the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from cnnbench.base.errors import CnnbenchError, UsageError

MANIFEST = Path(__file__).with_name("artefacts.yaml")

Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class Artefact(BaseModel):
    """One file that can be staged. Staging needs at least one digest; `size` is in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PlainName
    file_name: PlainName
    url: Annotated[str, Field(pattern=r"^https?://")]
    size: PositiveInt | None = None
    md5: Md5 | None = None
    sha256: Sha256 | None = None
    terms: str
    figures_from: str = ""


def load_artefacts(path: Path = MANIFEST) -> dict[str, Artefact]:
    """Read a manifest file; return its artefacts by name."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["artefacts"]
        return {name: Artefact(name=name, **fields) for name, fields in entries.items()}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CnnbenchError(f"{path}: not a manifest: needed a mapping `artefacts:` of names to fields") from error
    except ValidationError as error:
        raise CnnbenchError(f"{path}: {error}") from error


def find_artefact(name: str, path: Path = MANIFEST) -> Artefact:
    """Return the artefact called `name`."""
    artefacts = load_artefacts(path)
    if name not in artefacts:
        raise UsageError(f"{name!r}: no such artefact; known: {', '.join(artefacts)}")
    return artefacts[name]
