"""Make a cache like another whose drawn validation images have one among them that cannot be decoded."""

import shutil
from pathlib import Path

from cnnbench.staging.inputs import stage_procedural


def damage_image(cache: Path, copy: Path, number: int, *, prepared: bool = True) -> Path:
    """Link all of a cache but its validation images into a new one and damage one of those; return the damaged file.

    It keeps its size, so that the set's manifest does not tell. `prepared`: whether models that are prepared stay so.
    """
    (copy / "datasets").mkdir(parents=True)
    left_out = {"datasets"} if prepared else {"datasets", "prepared"}
    for path in cache.iterdir():
        if path.name not in left_out and not path.name.startswith("."):
            (copy / path.name).symlink_to(path)
    for path in (cache / "datasets").iterdir():
        if path.name.endswith("-validation"):
            shutil.copytree(path, copy / "datasets" / path.name)
        else:
            (copy / "datasets" / path.name).symlink_to(path)
    bad = Path(stage_procedural("validation", copy).paths()[number])
    bad.write_bytes(bytes(bad.stat().st_size))
    return bad
