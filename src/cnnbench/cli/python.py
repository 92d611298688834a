"""`cnnbench python`: the Python of an engine's environment, for scripts that use what it has."""

import argparse
import os

from cnnbench.base.cache import cache_root
from cnnbench.base.checkout import SOURCES
from cnnbench.engines.builds import choose_build
from cnnbench.engines.registry import AUTO, engines, find_engine
from cnnbench.machine.host import read_cpuinfo
from cnnbench.staging.environments import engine_python


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("engine", choices=[name for name, one in engines().items() if one.builds], help="whose")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="what Python is to run")


def run(arguments: argparse.Namespace) -> int:
    """Become that Python, making its environment on first use; cnnbench can be imported there too."""
    engine = find_engine(arguments.engine)
    python = engine_python(engine, choose_build(engine, AUTO, read_cpuinfo()), cache_root(os.environ))
    os.execve(python, [str(python), *arguments.words], os.environ | {"PYTHONPATH": str(SOURCES)})  # noqa: S606 - no shell
