"""`cnnbench report`: one HTML file about runs."""

import argparse
import sys
from pathlib import Path

from cnnbench.base.disk import check_directory
from cnnbench.base.errors import UsageError
from cnnbench.cli.selecting import SOURCES, add_selection, read_selection
from cnnbench.report.page.charts import need_altair
from cnnbench.report.page.page import PAGE, draw_pictures, write_page


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-o", "--output", type=Path, default=Path(PAGE), metavar="FILE", help="the page (%(default)s)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write each chart there too, as SVG and PNG")
    add_selection(parser)
    parser.add_argument("directories", nargs="+", type=Path, metavar="RUNS", help=SOURCES)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and tell what is not in it; return 1 if a directory is not."""
    output: Path = arguments.output
    if output.is_dir():
        raise UsageError(f"--output {output}: is a directory; name a file, such as {output / PAGE}")
    check_directory(f"--output {output}", output.parent)
    if arguments.pictures:
        need_altair("--pictures")
        check_directory(f"--pictures {arguments.pictures}", arguments.pictures)
    page = write_page(arguments.directories, output, read_selection(arguments))
    for note in page.told:
        print(note, file=sys.stderr)
    print(f"wrote {output}, {output.stat().st_size / 1e6:.2f} MB, {len(page.runs.runs)} runs")
    if arguments.pictures:
        print(f"wrote {len(draw_pictures(page, arguments.pictures))} pictures into {arguments.pictures}")
    return 1 if page.failures else 0
