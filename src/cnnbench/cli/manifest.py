"""`cnnbench manifest`: the Gramine manifest of an SGX case's first worker."""

import argparse
import os
import tempfile
from pathlib import Path

from cnnbench.base.cache import cache_root
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.case import parse_arguments
from cnnbench.cli.options import add_case
from cnnbench.launch.gramine import find_gramine
from cnnbench.launch.trusted import check_manifest, count_trusted
from cnnbench.run.enclaves import TEMPLATE, render_first
from cnnbench.run.inputs import stage_inputs
from cnnbench.run.job import plan_case, prepare_job
from cnnbench.run.serve import overlay_cache


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_case(parser)
    parser.description = "Print the manifest of an SGX case's first worker; needs neither SGX nor Gramine."
    parser.add_argument("--check", action="store_true", help="verify its trusted files in place of printing it")
    parser.add_argument("--without-gramine", action="store_true", help="leave Gramine's own trusted files out")


def run(arguments: argparse.Namespace) -> int:
    """Print the manifest, or what is amiss with its trusted files."""
    planned = plan_case(arguments.workload, arguments.case, os.environ, parse_arguments(arguments.rest))
    if not planned.case.sgx:
        raise UsageError(f"{arguments.case}: runs in no enclave and has no manifest; test_*_sgx_* cases have")
    gramine = None if arguments.without_gramine else find_gramine()
    if gramine is None and not arguments.without_gramine:
        raise CnnbenchError(
            "gramine-sgx: not on PATH: the manifest trusts Gramine's own files too; the image ...-inference-sgx has "
            "them unless it was made with GRAMINE=none; --without-gramine leaves them out"
        )
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as directory:
        scratch = Path(directory)
        job = prepare_job(planned, os.environ, enclaves=True)
        inputs = stage_inputs(job, overlay_cache(cache_root(os.environ), scratch / "cache"))
        text = render_first(job, inputs, arguments.workload / TEMPLATE, scratch, gramine)
        problems = check_manifest(text) if arguments.check else []
    if not arguments.check:
        print(text, end="")
    elif problems:
        raise CnnbenchError("\n".join([f"{arguments.case}: {len(problems)} trusted files are amiss:", *problems]))
    else:
        left_out = "; Gramine's own are not among them" if gramine is None else ""
        print(f"{arguments.case}: {count_trusted(text)} trusted files: all there, with their hashes{left_out}")
    return 0
