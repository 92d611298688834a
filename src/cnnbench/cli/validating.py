"""Have the cases of a validation run by ctest, in a build directory of the validation's own."""

import difflib
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, SkippedError, UsageError
from cnnbench.cases.variables import CONFIG_VARIABLE, DEFAULTS_VARIABLE, DIRECTORY_VARIABLE, OPTIONS_VARIABLE
from cnnbench.cli.configuring import configure, find_tool
from cnnbench.cli.ctest_process import run_ctest
from cnnbench.cli.selection import select_cases
from cnnbench.results.record import find_iterations
from cnnbench.validation.outcome import CaseRun, Outcome, read_runs_of
from cnnbench.validation.plan import QUICK_TYPES, CaseChoice, Depth, Plan, WorkloadSettings

OWN = ("PLATFORM", "BACKEND", "BENCHMARK", "CNNBENCH_PYTHON")
"""The options of cmake that are given by options of `cnnbench validate`, or by what it runs with."""
_LAST_LOG = "Testing/Temporary/LastTest.log"


def find_workloads(root: Path, names: Sequence[str], code: str) -> tuple[list[Path], list[str]]:
    """Return the directories of the workloads that a platform has, and in words which it has not.

    `names`: those that are wanted; none for all. Raises UsageError for one that there is not, and SkippedError where
    the platform has none.
    """
    known = {path.parent.name: path.parent for path in sorted(root.glob("workload/*/workload.yaml"))}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, cutoff=0.3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"--workload {name}: no such workload; {hint}")
    chosen = [path for name, path in known.items() if not names or name in names]
    able = [path for path in chosen if (path / "cmake" / f"{code}.cmake").is_file()]
    lacking = [f"{path.name}: has no cases on {code}" for path in chosen if path not in able]
    if not able:
        raise SkippedError("\n".join([f"nothing to validate on {code}:", *lacking]))
    return able, lacking


def check_cmake_options(options: Sequence[str]) -> list[str]:
    """Return what cmake is to be given besides what is fixed; raise UsageError for what it would not understand."""
    for text in options:
        name = text.partition("=")[0]
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", text, re.DOTALL):
            raise UsageError(f"-D {text}: must be NAME=VALUE, such as -D REGISTRY=host:5000")
        if name in OWN:
            raise UsageError(f"-D {text}: {name} is not given so; see --platform, --backend and --workload")
    return [f"-D{text}" for text in options]


@dataclass(frozen=True)
class Stand:
    """A build directory with the workloads that are validated in it."""

    build: Path
    settings: Mapping[str, WorkloadSettings]

    @classmethod
    def set_up(
        cls,
        root: Path,
        build: Path,
        code: str,
        backend: str,
        options: Sequence[str],
        settings: Sequence[WorkloadSettings],
    ) -> "Stand":
        """Configure it, and make the images where cases run in containers and no registry has them."""
        by_name = {one.directory.name: one for one in settings}
        benchmark = "|".join(f"^{re.escape(name)}$" for name in by_name)
        words = [f"-DBACKEND={backend}", f"-DBENCHMARK={benchmark}", *options]
        configure(root, build, code, words, "give a directory with room that you may write to, with -o")
        return cls(build, by_name)

    def make_images(self) -> None:
        """Build the images that the cases run in, as `make` does."""
        done = subprocess.run([find_tool("cmake"), "--build", str(self.build)], check=False)
        if done.returncode != 0:
            raise CnnbenchError(
                f"the images could not be made (exit {done.returncode}); their logs are in {self.build}"
            )

    def list_cases(self, filters: Sequence[str], depth: Depth) -> list[CaseChoice]:
        """Return the cases that filters of ctest choose and the depth has; raise UsageError where there is none."""
        found = []
        lenient = ["--no-tests=ignore"] if len(self.settings) > 1 else []
        for name, one in self.settings.items():
            cases = select_cases(self.directory(name), [find_tool("ctest"), *filters, *lenient])
            found += [
                CaseChoice(workload=name, case=case)
                for case in cases
                if depth != "quick" or one.workload.parse_case(case).case_type in QUICK_TYPES
            ]
        if not found:
            told = " ".join(filters) or f"--{depth}"
            more = f", of which --quick takes those that end in {' or '.join(QUICK_TYPES)}" if depth == "quick" else ""
            raise UsageError(f"{told}: selects no case of {', '.join(self.settings)}{more}; see --dry-run")
        return found

    def directory(self, workload: str) -> Path:
        """Return a workload's build directory."""
        return self.build / "workload" / workload

    def logs(self, choice: CaseChoice) -> Path:
        """Return where the runs of a case are."""
        return self.directory(choice.workload) / f"logs-{choice.case}"

    def read_outcome(self, choice: CaseChoice, plan: Plan) -> tuple[Outcome, list[str]]:
        """Return what a case has come to so far."""
        runs, told = read_runs_of(self.logs(choice), plan.machine)
        return Outcome(choice, tuple(runs)), told

    def run_case(self, choice: CaseChoice, plan: Plan) -> Outcome:
        """Run a case once more, and return what it has come to; raise KeyboardInterrupt where it was interrupted."""
        directory, one = self.directory(choice.workload), self.settings[choice.workload]
        settings = {DIRECTORY_VARIABLE: str(Path.cwd())}
        if plan.options:
            settings[OPTIONS_VARIABLE] = json.dumps(plan.options)
        for variable, path in ((DEFAULTS_VARIABLE, one.defaults), (CONFIG_VARIABLE, one.config)):
            if path:
                settings[variable] = str(path.absolute())
        skips: list[str] = []
        before = len(find_iterations(self.logs(choice)))
        command = [find_tool("ctest"), "-Q", "-R", f"^{re.escape(choice.case)}$"]
        code = run_ctest(command, directory, {**os.environ, **settings}, skips.append)
        if code >= 128:
            raise KeyboardInterrupt
        outcome, _ = self.read_outcome(choice, plan)
        if skips:
            return Outcome(choice, outcome.runs, skipped=skips[0].removeprefix(f"{choice.case}: "))
        if not self._has_new_run(choice, outcome.runs, before):
            return Outcome(choice, outcome.runs, failed=self._read_failure(choice, code))
        return outcome

    def _has_new_run(self, choice: CaseChoice, runs: Sequence[CaseRun], before: int) -> bool:
        new = list(find_iterations(self.logs(choice)).values())[before:]
        return any(one.worker.parent in new for one in runs)

    def _read_failure(self, choice: CaseChoice, code: int) -> str:
        """Return why a case left no result, in the words that it ended with."""
        log = self.directory(choice.workload) / _LAST_LOG
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        told = [line.removeprefix("cnnbench: ") for line in lines if line.startswith("cnnbench: ")]
        return told[-1] if told else f"left no result (ctest ended with {code}); see {log}"
