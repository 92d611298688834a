"""Turn blocks of rounds into figures, and those into Markdown: pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from peer_engines import PRODUCT
from peer_process import Block

from cnnbench.machine.ceiling import HOW_TO_GET, PEAK_VARIABLE
from cnnbench.results import stats


@dataclass
class Row:
    """One engine at one precision: what it was, what each round measured, and why it was not measured, if so."""

    precision: str
    engine: str
    versions: str = ""
    instances: int = 0
    batch_size: int = 0
    ran: str = ""
    blocks: list[Block] = field(default_factory=list)
    reason: str = ""
    failed: bool = False

    def figures(self, mode: str) -> list[float]:
        """Return each round's figure: images/s, or the median of the inference times in ms."""
        if self.reason:
            return []
        if mode == "latency":
            return [float(np.median(_times_ms(block))) for block in self.blocks]
        return [_images_per_s(block, self.batch_size) for block in self.blocks]


def _images_per_s(block: Block, batch_size: int) -> float:
    """Return the throughput over the common window, as the product computes it."""
    images = [np.full(len(rows), batch_size) for rows in block.steps]
    return stats.estimate_throughput(block.steps, images, stats.common_window(block.steps)).mean


def _times_ms(block: Block) -> np.ndarray:
    return stats.inference_times_ms(block.steps, stats.common_window(block.steps))


def interval_text(samples: Sequence[float], digits: int) -> str:
    """Return a median with its 95 % interval."""
    median, low, high = stats.median_interval(samples)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def ratio_text(above: Sequence[float], below: Sequence[float]) -> str:
    """Return the median of the ratios within rounds, with its interval; a dash when one of the two is missing."""
    return interval_text([a / b for a, b in zip(above, below, strict=True)], 3) if above and below else "-"


def utilization_text(row: Row) -> str:
    """Return the product's share of the cores' ceiling in percent, a dash for what is not held against it."""
    found = [100 * block.utilization for block in row.blocks if block.utilization is not None]
    if row.engine != PRODUCT:
        return "-"
    return "NOT MEASURED" if row.reason or not found else interval_text(found, 1)


def table(rows: Sequence[Row], mode: str) -> list[str]:
    """Return the table of a mode's rows."""
    heads: tuple[str, ...] = {
        "throughput": ("precision", "engine", "version", "instances x batch", "images/s", f"{PRODUCT} / engine"),
        "latency": ("precision", "engine", "version", "p50 (ms)", "p99 (ms)", f"{PRODUCT} / engine, p50"),
    }[mode]
    heads += ("compute utilization (%)",)
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- |" + " ---: |" * (len(heads) - 3)]
    for row in rows:
        cells = [row.precision, row.engine, row.versions or "-"]
        if row.reason:
            cells += ["-", "NOT MEASURED", "-"]
        else:
            ours = next(one for one in rows if one.precision == row.precision and one.engine == PRODUCT).figures(mode)
            figures = row.figures(mode)
            ratio = "1" if row.engine == PRODUCT else ratio_text(ours, figures)
            if mode == "throughput":
                cells += [f"{row.instances} x {row.batch_size}", interval_text(figures, 2), ratio]
            else:
                cells += [interval_text(figures, 2), _p99_text(row.blocks), ratio]
        lines.append(f"| {' | '.join([*cells, utilization_text(row)])} |")
    return lines


def _p99_text(blocks: Sequence[Block]) -> str:
    """Return p99 over the samples of all rounds together, with their number; they must be enough for one."""
    times = np.concatenate([_times_ms(block) for block in blocks])
    found = stats.percentiles(times).get(99)
    needed = stats.PERCENTILE_FLOORS[99]
    return f"too few samples: {len(times)} of {needed}" if found is None else f"{found:.2f} (of {len(times)})"


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what each engine executed, and the reasons for what was not measured."""
    lines = ["What ran:", ""]
    lines += [f"- {row.precision}, {row.engine}: {row.ran}" for row in rows if not row.reason]
    lines += verdict_notes(rows)
    if any(row.blocks and row.blocks[-1].utilization is None for row in rows if row.engine == PRODUCT):
        lines.append(f"- compute utilization: NOT MEASURED: {PEAK_VARIABLE} names no program; {HOW_TO_GET}")
    missing = [f"- {row.precision}, {row.engine}: {row.reason}" for row in rows if row.reason]
    return lines + (["", "NOT MEASURED:", "", *missing] if missing else [])


def verdict_notes(rows: Sequence[Row]) -> list[str]:
    """Return how many of the product's blocks were not valid, and what the last of them was."""
    lines = []
    for row in rows:
        complaints = [block.complaint for block in row.blocks if block.complaint]
        if complaints:
            count = f"{len(complaints)} of {len(row.blocks)} blocks not valid"
            lines.append(f"- {row.precision}, {row.engine}: {count}; the last: {complaints[-1]}")
    return lines


def speed_up_table(rows: Sequence[Row], mode: str, base: str) -> list[str]:
    """Return the table of one engine's precisions, each against the base, paired within rounds."""
    figures = {row.precision: row.figures(mode) for row in rows}
    head = "images/s | ratio" if mode == "throughput" else "p50 (ms) | ratio of p50"
    lines = [f"| {rows[0].engine} | {head} |", "| --- | ---: | ---: |"]
    for row in rows:
        found = figures[row.precision]
        name, ratio = (
            (base, "1") if row.precision == base else (f"{row.precision} over {base}", ratio_text(found, figures[base]))
        )
        lines.append(f"| {name} | {interval_text(found, 2) if found else f'NOT MEASURED: {row.reason}'} | {ratio} |")
    return lines


def contention_text(rows: Sequence[Row]) -> str:
    """Say how much of the cores' time other processes took while blocks were measured."""
    others = [block.others for row in rows for block in row.blocks if block.others is not None]
    if not others:
        return "Other processes' share of the cores' time: not known, the blocks were too short."
    return f"Other processes took {np.median(others):.1%} of the cores' time (median block; worst {max(others):.1%})."
