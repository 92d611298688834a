"""Draw charts by Altair in colours that the page's style decides, so that light, dark and paper need one chart."""

import importlib
import json
import re
from typing import Any

from cnnbench.base.errors import UsageError
from cnnbench.report.page.model import Figure

HOW_TO_GET = "run script/setup.sh report"
WIDTH, HEIGHT = 640, 300

COLORS = {
    "ink": ("#1b1f24", "#e6e9ee"),
    "quiet": ("#5b6470", "#a3adba"),
    "line": ("#d4d9df", "#3a424d"),
    "paper": ("#ffffff", "#14181d"),
    "c1": ("#0063b1", "#5cb3ff"),
    "c2": ("#b84a00", "#ff9d5c"),
    "c3": ("#007a5a", "#3fd0a4"),
    "c4": ("#a3238e", "#f08be0"),
    "c5": ("#7a5c00", "#e0be4a"),
    "c6": ("#4b3fbf", "#ada6ff"),
    "c7": ("#b3261e", "#ff8a80"),
    "c8": ("#3d5a66", "#9dbecb"),
}
"""The page's colours, light and dark; each has a contrast of 4.5 or more with its paper, but `line`."""
SERIES = [f"var(--c{number})" for number in range(1, 9)]
SHAPES = {"valid": "circle", "unstable": "diamond"}
"""How the marks of runs differ by verdict, besides by what their tooltips say."""
NUMBER = ".4~g"
"""How tooltips show numbers: four digits."""

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "mark": {"color": SERIES[0], "aria": False},
    "axis": {
        "labelColor": "var(--quiet)", "titleColor": "var(--ink)", "tickColor": "var(--line)",
        "gridColor": "var(--line)", "domainColor": "var(--quiet)", "labelFontSize": 11, "titleFontSize": 12,
        "titleFontWeight": "normal", "labelLimit": 280,
    },
    "legend": {
        "labelColor": "var(--ink)", "titleColor": "var(--quiet)", "orient": "bottom", "labelLimit": 420,
        "titleFontWeight": "normal", "columns": 2, "symbolStrokeWidth": 2, "symbolBaseFillColor": "var(--quiet)",
        "symbolBaseStrokeColor": "var(--quiet)",
    },
    "range": {"category": SERIES},
    "text": {"color": "var(--ink)", "fontSize": 11},
    "rule": {"color": "var(--quiet)"},
}  # fmt: skip


def load_altair() -> Any | None:
    """Return Altair's module, None where it, or what has the JavaScript of its charts, is not installed."""
    try:
        altair = importlib.import_module("altair")
        importlib.import_module("vl_convert")
    except ImportError:
        return None
    return altair


def need_altair(what: str) -> Any:
    """Return Altair's module; raise UsageError saying how to get it."""
    altair = load_altair()
    if altair is None:
        raise UsageError(f"{what}: needs Altair and vl-convert: {HOW_TO_GET}")
    return altair


def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which asks for nothing else."""
    text: str = importlib.import_module("vl_convert").javascript_bundle()
    return text


def specify(figure: Figure, altair: Any) -> dict[str, Any]:
    """Return a figure as Vega-Lite, as wide as what it is put into."""
    spec: dict[str, Any] = figure.draw(altair, figure.values).to_dict()
    spec.pop("$schema", None)
    spec["width"], spec["autosize"] = "container", {"type": "fit-x", "contains": "padding"}
    spec["config"] = CONFIG
    return spec


def color(spec: dict[str, Any], theme: int) -> dict[str, Any]:
    """Return a chart for files, which have no style: 0 for a light, 1 for a dark background."""
    text = re.sub(r"var\(--(\w+)\)", lambda found: COLORS[found[1]][theme], json.dumps(spec))
    colored: dict[str, Any] = json.loads(text)
    colored["width"], colored["background"] = WIDTH, COLORS["paper"][theme]
    return colored


def data(alt: Any, values: list[dict[str, Any]]) -> Any:
    """Return a chart's data, by the name by which the page finds them."""
    return alt.Data(values=values, name="values")


def by_series(alt: Any, field: str = "series", title: str | None = None) -> Any:
    """Return the colour of a series, in the order in which they come."""
    return alt.Color(f"{field}:N", title=title, sort=None, scale=alt.Scale(range=SERIES))


def by_verdict(alt: Any) -> Any:
    """Return the shape of a run's mark."""
    scale = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    return alt.Shape("verdict:N", title="verdict", scale=scale)


def tip(alt: Any, **titles: str) -> list[Any]:
    """Return what hovering tells: fields as `name=title`, numbers by `name__q=title`."""
    return [
        alt.Tooltip(f"{name.removesuffix('__q')}:Q", title=title, format=NUMBER)
        if name.endswith("__q")
        else alt.Tooltip(f"{name}:N", title=title)
        for name, title in titles.items()
    ]
