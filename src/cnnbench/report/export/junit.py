"""Write runs as JUnit XML, which CI systems read: a test suite per workload, a test case per run.

The elements are those of Apache Ant's JUnit task, and of Jenkins', and test cases have properties, as pytest's have.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import BinaryIO

from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.text import printable
from cnnbench.results.record import RunResult

UNREAD = "not read"
"""The suite of what could not be read."""
MEASURED = "measured for"
"""The fact that tells how long a run has measured."""


def write_junit(runs: Sequence[tuple[str, RunResult]], failures: Sequence[str], stream: BinaryIO) -> None:
    """Write the runs, and a test case with an error for each thing that could not be read.

    An invalid run is a failure, one that was interrupted an error. An unstable one passes, and is told in its
    properties and in the suite's output.
    """
    root = ET.Element("testsuites")
    suites: dict[str, list[tuple[str, RunResult]]] = {}
    for name, run in runs:
        suites.setdefault(run.workload, []).append((name, run))
    for workload, members in suites.items():
        _add_suite(root, workload, members)
    if failures:
        _add_unread(root, failures)
    ET.indent(root, " ")
    ET.ElementTree(root).write(stream, encoding="utf-8", xml_declaration=True)
    stream.write(b"\n")


def _add_suite(root: ET.Element, workload: str, members: Sequence[tuple[str, RunResult]]) -> None:
    hosts = {run.facts.get(HOST_NAME, "") for _, run in members}
    started = min(
        (when for _, run in members if (when := run.started_at)), default=datetime.fromtimestamp(0, timezone.utc)
    )
    suite = _begin_suite(root, workload, started, host=hosts.pop() if len(hosts) == 1 else "")
    cases = [_add_case(suite, name, run) for name, run in members]
    unstable = [f"{name}: unstable: {run.reason}" for name, run in members if run.verdict == "unstable"]
    _end_suite(suite, unstable, [])
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("skipped", "0")
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _begin_suite(root: ET.Element, name: str, started: datetime, host: str) -> ET.Element:
    when = started.replace(tzinfo=None).isoformat(timespec="seconds")
    attributes = {
        "name": _token(name), "package": "cnnbench", "id": str(len(root)), "timestamp": when,
        "hostname": _token(host) if host else "localhost",
    }  # fmt: skip
    suite = ET.SubElement(root, "testsuite", attributes)
    ET.SubElement(suite, "properties")
    return suite


def _end_suite(suite: ET.Element, output: Sequence[str], errors: Sequence[str]) -> None:
    for name, lines in (("system-out", output), ("system-err", errors)):
        ET.SubElement(suite, name).text = "\n".join(map(printable, lines))


def _add_case(suite: ET.Element, name: str, run: RunResult) -> ET.Element:
    """Add a run: the case is the class, and the run the name."""
    found = re.match(r"[0-9]+(\.[0-9]+)?(?= s\b)", run.facts.get(MEASURED, ""))
    case = ET.SubElement(
        suite, "testcase",
        {"classname": _token(run.case), "name": _token(name), "time": f"{float(found[0]) if found else 0:.3f}"},
    )  # fmt: skip
    properties = ET.SubElement(case, "properties")
    told = {"verdict": run.verdict, "reason": run.reason, "run": run.run_id, "started": run.started}
    told |= {f"parameter {key}": value for key, value in run.effective.items()}
    if run.verdict != "invalid":
        told |= {f"{'*' if kpi.primary else ''}{kpi.key} ({kpi.unit})": repr(kpi.value) for kpi in run.kpis}
    for key, value in told.items():
        if value:
            ET.SubElement(properties, "property", {"name": _token(key), "value": printable(value)})
    if run.verdict == "invalid":
        kind = "error" if run.interrupted else "failure"
        reason = printable(run.reason)
        ET.SubElement(case, kind, {"type": kind if run.interrupted else "INVALID", "message": reason}).text = reason
    return case


def _add_unread(root: ET.Element, failures: Sequence[str]) -> None:
    suite = _begin_suite(root, UNREAD, datetime.now(timezone.utc), "")
    for failure in failures:
        case = ET.SubElement(
            suite, "testcase",
            {"classname": UNREAD, "name": _token(failure.partition(": ")[0]), "time": "0.000"},
        )  # fmt: skip
        ET.SubElement(case, "error", {"type": UNREAD, "message": printable(failure)}).text = printable(failure)
    _end_suite(suite, [], failures)
    suite.set("tests", str(len(failures)))
    suite.set("failures", "0")
    suite.set("errors", str(len(failures)))
    suite.set("skipped", "0")
    suite.set("time", "0.000")


def _token(text: str) -> str:
    """Return a text as a name that XML takes: it has no characters at its ends that are cut off, and is not empty."""
    return " ".join(printable(text).split()) or "-"
