"""`cnnbench peak`: what this machine's cores and memory can do at most."""

import argparse
import os

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.machine.ceiling import HOW_TO_GET, PEAK_VARIABLE, find_peak_program, measure_peaks, peak_table
from cnnbench.machine.topology import format_cpu_list, parse_cpu_list, read_topology


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cpus", metavar="LIST", help="such as 0-3,8; default: one CPU of each core that may be used")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print the table."""
    program = find_peak_program(os.environ)
    if program is None:
        raise CnnbenchError(f"{PEAK_VARIABLE} is not set: it must name the program that measures; {HOW_TO_GET}")
    topology = read_topology()
    cpus = tuple(core.cpus[0] for core in topology.cores)
    if arguments.cpus is not None:
        cpus = parse_cpu_list(arguments.cpus)
        if not cpus or not set(cpus) <= set(topology.cpus):
            raise UsageError(f"--cpus {arguments.cpus}: must be some of {format_cpu_list(topology.cpus)}")
    print(peak_table(measure_peaks(program, cpus), cpus))
    return 0
