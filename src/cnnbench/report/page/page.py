"""Put a page together: one HTML file that needs nothing else, and asks for nothing else."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cnnbench.base.disk import explain_refusals
from cnnbench.base.errors import CnnbenchError
from cnnbench.report.page import (
    accuracy,
    energy,
    history,
    layers,
    places,
    platforms,
    published,
    roofline,
    serving,
    speed,
    times,
)
from cnnbench.report.page.charts import COLORS, HOW_TO_GET, color, javascript, load_altair, need_altair, specify
from cnnbench.report.page.model import Section
from cnnbench.report.page.runs import Runs, read_runs
from cnnbench.report.page.summary import summarise, tell_origins
from cnnbench.report.selection import ALL, Selection
from cnnbench.report.text import WORDS

PAGE = "report.html"
"""What a page is called that a command leaves behind."""
HERE = Path(__file__).parent
MOST_BYTES = 3_000_000
"""How large a page may be."""
MARKS = {"valid": "✓", "unstable": "~", "invalid": "✗"}
"""What a badge shows beside its word, so that it is told by more than a colour."""

SECTIONS = (
    platforms.show_platforms,
    speed.show_speed,
    times.show_distribution,
    times.show_steps,
    speed.show_scaling,
    energy.show_energy,
    places.show_places,
    accuracy.show_accuracy,
    roofline.show_roofline,
    layers.show_layers,
    serving.show_serving,
    published.show_published,
    history.show_history,
)
"""What makes the sections between the summary and the origins; each returns None where it has nothing to show."""


@dataclass(frozen=True)
class Page:
    """What a page says, and `notes` for who had it made: what could not be read, and what is missing from it."""

    runs: Runs
    sections: Sequence[Section]

    @property
    def failures(self) -> list[str]:
        """Why directories are missing."""
        return self.runs.failures

    @property
    def told(self) -> list[str]:
        """What whoever had it made should know: why directories are missing, and why charts are."""
        plain = [] if load_altair() else [f"the page has tables alone; for charts, {HOW_TO_GET}"]
        return [*self.failures, *plain]


def gather(directories: Sequence[Path], selection: Selection = ALL, first: Sequence[Section] = ()) -> Page:
    """Read the runs of directories and make the sections, behind those that a command has of its own (`first`).

    Raise CnnbenchError where there is no run at all.
    """
    runs = read_runs(directories, selection)
    if not runs.runs:
        raise CnnbenchError("\n".join(["no run to report on; needed logs directories, such as logs-*", *runs.failures]))
    return Page(runs, [*first, *(section for show in SECTIONS if (section := show(runs)))])


def render(page: Page) -> str:
    """Return the page as HTML: with charts where Altair is installed, else with the tables alone."""
    altair = load_altair()
    specs: dict[str, Any] = {}
    if altair is not None:
        specs = {figure.name: specify(figure, altair) for section in page.sections for figure in section.figures}
    scripts = [javascript()] if specs else []
    scripts.append((HERE / "page.js").read_text(encoding="utf-8"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["numeric"] = _is_number
    origins = tell_origins(page.runs)
    text = environment.get_template("page.html.j2").render(
        page=page,
        summary=summarise(page.runs),
        origins=origins,
        told_numbers={told.run.number for told in origins.told},
        by_number={run.number: run for run in page.runs.runs},
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        style=_theme_style() + (HERE / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        policy=_policy(scripts),
        specs=_script_json(specs) if specs else "",
        marks=MARKS,
        words=WORDS,
        how_to_get=HOW_TO_GET,
    )
    return text.encode("utf-8", "backslashreplace").decode()  # names of files need not be text


def write_page(
    directories: Sequence[Path], output: Path, selection: Selection = ALL, first: Sequence[Section] = ()
) -> Page:
    """Write the page about runs, as of `gather`; raise CnnbenchError where there are none, or it cannot be written."""
    page = gather(directories, selection, first)
    text = render(page)
    with explain_refusals(output, "make room, or name another file with -o"):
        output.write_text(text, encoding="utf-8")
    return page


def end_with_page(directories: Sequence[Path], output: Path, first: Sequence[Section] = ()) -> str:
    """Write the page about the runs that a command has just made, as of `gather`; return the line that says so.

    What keeps it from being written is told in that line: the runs are good without it.
    """
    try:
        page = write_page(directories, output, first=first)
    except (CnnbenchError, OSError) as error:
        return f"no page: {error}"
    plain = [note for note in page.told if note not in page.failures]
    return "; ".join([f"page: {output}", *plain])


def draw_pictures(page: Page, directory: Path) -> list[Path]:
    """Write each chart as SVG and PNG, light and dark, for documents; return the files."""
    altair = need_altair("--pictures")
    import vl_convert

    written = []
    with explain_refusals(directory, "make room, or name another directory with --pictures"):
        directory.mkdir(parents=True, exist_ok=True)
        for figure in (figure for section in page.sections for figure in section.figures):
            for theme, suffix in enumerate(("", "-dark")):
                spec = color(specify(figure, altair), theme)
                svg, png = (directory / f"{figure.name}{suffix}.{kind}" for kind in ("svg", "png"))
                svg.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
                png.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
                written += [svg, png]
    return written


def _policy(scripts: Sequence[str]) -> str:
    """Return what the page may do: run its own scripts, and reach no other place.

    Vega gives its marks styles of their own, so styles are allowed where they stand.
    """
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _script_json(data: object) -> str:
    """Return data that a script element can hold, whatever texts are in it: no `<`, so no end of it and no comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _theme_style() -> str:
    """Return the colours: those of the system's choice, of the reader's, and of paper."""
    light, dark = (";".join(f"--{name}:{pair[theme]}" for name, pair in COLORS.items()) for theme in (0, 1))
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark)"
        f"{{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}"
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9][0-9.e+-]*( ±[0-9.]+)?", text) is not None
