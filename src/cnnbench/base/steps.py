"""Run the steps of a module that is started by its name, each on paths."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cnnbench.base.errors import exit_code_of

Step = tuple[Callable[..., object], Sequence[str]]


def run_step(
    program: str,
    description: str | None,
    steps: Mapping[str, Step],
    arguments: Sequence[str],
) -> int:
    """Run the step that the first argument names, on the paths that follow; return the exit code.

    `steps`: by name, what each does, and the names of the paths that it takes.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parsers = parser.add_subparsers(required=True)
    for name, (step, paths) in steps.items():
        one = parsers.add_parser(name)
        one.set_defaults(step=step)
        for path in paths:
            one.add_argument(path, type=Path)
    parsed = vars(parser.parse_args(arguments))
    chosen = parsed.pop("step")
    return exit_code_of(lambda: chosen(*parsed.values()))
