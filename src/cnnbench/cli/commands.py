"""Name the commands, in groups; what each does is in a module of its own, which is imported when it is called."""

import difflib
from dataclasses import dataclass
from typing import Literal

from cnnbench.base.errors import UsageError

Rest = Literal["nothing", "unknown", "after --", "all"]
"""The words that a command finds in `arguments.rest`, because they are for others to read; "nothing": they are errors.

"unknown": what is no option of its own. "all": it reads every word by itself and has no `add_options`.
"""


@dataclass(frozen=True)
class Command:
    """A command before it is called.

    `module`: has `add_options(parser)` and `run(arguments)`, which returns the exit code. `summary`: what it does, in
    a line of the help.
    """

    module: str
    summary: str
    rest: Rest = "nothing"


GROUPS = {
    "measure": {
        "run": Command("cnnbench.cli.run", "measure a network, with the reference harness's options", "all"),
        "launch": Command("cnnbench.cli.launch", "start several instances of `run`, which comes after --", "all"),
        "benchmark": Command("cnnbench.cli.benchmark", "run the benchmarks of a spec, and tabulate them"),
        "ab": Command("cnnbench.cli.ab", "measure a case with two settings in turns, until it is clear", "unknown"),
        "fleet": Command("cnnbench.cli.fleet", "measure cases on many machines, through their schedulers"),
        "sweep": Command("cnnbench.cli.sweep", "find the fastest settings of cases on this machine", "unknown"),
        "validate": Command("cnnbench.cli.validate", "run and judge all cases of this platform", "unknown"),
    },
    "look": {
        "list-kpi": Command("cnnbench.cli.list_kpi", "tabulate the KPIs of runs, from their logs-* directories"),
        "compare": Command("cnnbench.cli.compare", "tell whether runs are faster than others, or slower"),
        "trend": Command("cnnbench.cli.trend", "follow each case over time, and mark the steps in it"),
        "report": Command("cnnbench.cli.report", "write one HTML page about runs: tables and charts"),
        "export": Command("cnnbench.cli.export", "write runs for other programs: spreadsheets, CI, notebooks"),
        "merge": Command("cnnbench.cli.merge", "join the runs of several machines, and compare the machines"),
        "isa": Command("cnnbench.cli.isa", "tabulate what each layer of a run ran on, and how long it took"),
        "hotspots": Command("cnnbench.cli.hotspots", "tabulate where a run's processor time went, by samples"),
        "judge": Command("cnnbench.cli.judge", "judge runs again from what they left, and tell what differs"),
        "peak": Command("cnnbench.cli.peak", "measure the most that this machine's cores and memory do"),
        "platform": Command("cnnbench.cli.platform", "print the platform code of this machine, or check one"),
    },
    "prepare": {
        "convert": Command("cnnbench.cli.convert", "hold a network, an ONNX file, in fp16, bf16 or fp8"),
        "compile": Command("cnnbench.cli.compile", "compile a network ahead of time, into files that an engine loads"),
        "run-exported": Command("cnnbench.cli.run_exported", "measure what `compile` or `convert --export` wrote"),
        "triton": Command(
            "cnnbench.cli.triton", "write model repositories for Triton Server, and serve them", "unknown"
        ),
        "python": Command("cnnbench.cli.python", "run a script with the Python of an engine's environment"),
        "stage": Command("cnnbench.cli.stage", "put models and images into the cache, verified"),
        "image": Command("cnnbench.cli.image", "plan, make and push a workload's container images"),
        "manifest": Command("cnnbench.cli.manifest", "print or check the Gramine manifest of an SGX case", "unknown"),
    },
}
"""The commands for people, as the help shows them."""

INTERNAL = {
    "case": Command("cnnbench.cli.case", "run one test case; what ctest calls", "unknown"),
    "fleet-node": Command("cnnbench.cli.fleet_node", "run a batch of a fleet; what launchers call on machines"),
    "container": Command("cnnbench.cli.container", "run the case that the environment describes; what an image calls"),
    "test-resnet": Command(
        "cnnbench.cli.resnet", "convert ResNet50, and tell its accuracy and speed; what test_resnet.py calls"
    ),
    "benchmark-compiled": Command(
        "cnnbench.cli.benchmark_compiled", "compare ResNet-50 eager and compiled; what benchmark_compiled.py calls"
    ),
    "ctest": Command("cnnbench.cli.ctest", "run a workload's cases; what ctest.sh calls", "after --"),
    "quickstart": Command("cnnbench.cli.quickstart", "go from nothing to a table of KPIs; what run.sh calls", "all"),
}
"""The commands that only our own scripts call."""

_PUBLIC = {name: command for group in GROUPS.values() for name, command in group.items()}

_HELP = """\
usage: cnnbench COMMAND [OPTION]...

Benchmark CNN inference on this machine.

{groups}

`cnnbench COMMAND --help` has a command's options. The test cases of a workload
are run by ./run.sh, and by ctest.sh in the workload's build directory."""


def find_command(name: str) -> Command:
    """Return the command of this name; raise UsageError, with names that come near, when there is none."""
    if command := (_PUBLIC | INTERNAL).get(name):
        return command
    close = difflib.get_close_matches(name, _PUBLIC)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(_PUBLIC)}"
    raise UsageError(f"{name}: no such command; {hint}")


def help_text() -> str:
    """Return what `cnnbench --help` prints, for a terminal of 80 columns."""
    width = max(map(len, _PUBLIC))
    groups = (
        "\n".join([f"{title}:", *(f"  {name:{width}}  {command.summary}" for name, command in group.items())])
        for title, group in GROUPS.items()
    )
    return _HELP.format(groups="\n\n".join(groups))
