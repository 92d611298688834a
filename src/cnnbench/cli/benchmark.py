"""`cnnbench benchmark`: the benchmarks of a spec."""

import argparse
from pathlib import Path

from cnnbench.base.disk import check_directory
from cnnbench.base.signals import check_timeout, end_by_exceptions
from cnnbench.harness.runs import describe_variants, run_spec
from cnnbench.harness.spec import choose_variants, read_spec


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--spec", type=Path, required=True, metavar="FILE", help="benchmarks.yml, or one like it")
    parser.add_argument(
        "--benchmark", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument("--gated", action="store_true", help="only those that are short enough for a small machine")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), metavar="DIR", help="logs, and a CSV of the table"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds until a run is ended as invalid")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")


def run(arguments: argparse.Namespace) -> int:
    """Run them in turn, and tabulate them."""
    end_by_exceptions()
    variants = choose_variants(read_spec(arguments.spec), arguments.benchmark, arguments.gated)
    check_timeout("--timeout", arguments.timeout)
    check_directory(f"--output {arguments.output}", arguments.output)
    if arguments.dry_run:
        print("\n".join(describe_variants(variants)))
        return 0
    return run_spec(variants, arguments.output.absolute(), arguments.timeout)
