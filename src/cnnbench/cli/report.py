"""`cnnbench report`: one HTML file about runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnbench.base.disk import check_directory
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.report.page.charts import need_altair
from cnnbench.report.page.page import draw_pictures, write_page

PAGE = "report.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-o", "--output", type=Path, default=Path(PAGE), metavar="FILE", help="the page (%(default)s)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write each chart there too, as SVG and PNG")
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="a logs-<case>, itr-N or worker-0 directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and tell what is not in it; return 1 if a directory is not."""
    output: Path = arguments.output
    if output.is_dir():
        raise UsageError(f"--output {output}: is a directory; name a file, such as {output / PAGE}")
    check_directory(f"--output {output}", output.parent)
    if arguments.pictures:
        need_altair("--pictures")
        check_directory(f"--pictures {arguments.pictures}", arguments.pictures)
    page = write_page(arguments.directories, output)
    for note in page.told:
        print(note, file=sys.stderr)
    print(f"wrote {output}, {output.stat().st_size / 1e6:.2f} MB, {len(page.runs.runs)} runs")
    if arguments.pictures:
        print(f"wrote {len(draw_pictures(page, arguments.pictures))} pictures into {arguments.pictures}")
    return 1 if page.failures else 0


def end_with_page(directories: Sequence[Path], output: Path) -> str:
    """Write the page about the runs that a command has just made, and return the line that says so.

    What keeps it from being written is told in that line: the runs are good without it.
    """
    try:
        page = write_page(directories, output)
    except (CnnbenchError, OSError) as error:
        return f"no page: {error}"
    plain = [note for note in page.told if note not in page.failures]
    return "; ".join([f"page: {output}", *plain])
