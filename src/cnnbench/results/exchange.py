"""Hold the results of many runs in one JSON file, which is read again wherever runs are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from cnnbench.base.errors import CnnbenchError
from cnnbench.results.record import SCHEMA, RunResult, Verdict, check_result

FORMAT = "cnnbench results"
"""What a file of results begins with, so that it is told from other JSON."""
EXPORT_SCHEMA = 1
SCHEMA_FILE = "results.schema.json"
"""The name under which `doc/` publishes the schema."""


class ExportedRun(BaseModel):
    """One run of a file.

    `logs`: the name of its logs. `verdict`, `reason`: what follows from the criteria, for whoever reads the file with
    another program; they are not read again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    logs: str
    verdict: Verdict
    reason: str
    result: RunResult


class Export(BaseModel):
    """What `cnnbench export` writes as JSON: whole results, in the order in which they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["cnnbench results"] = "cnnbench results"
    schema_version: Literal[1] = 1
    runs: list[ExportedRun]


def write_results(runs: Iterable[tuple[str, RunResult]], stream: BinaryIO) -> None:
    """Write runs by the names of their logs as an `Export`, one to a line."""
    stream.write(f'{{"format":"{FORMAT}","schema_version":{EXPORT_SCHEMA},"runs":['.encode())
    for number, (name, run) in enumerate(runs):
        one = ExportedRun(logs=name, verdict=run.verdict, reason=run.reason, result=run)
        stream.write(b"\n" if number == 0 else b",\n")
        stream.write(one.model_dump_json().encode())
    stream.write(b"\n]}\n")


def read_results(path: Path) -> tuple[list[tuple[str, RunResult]], list[str]]:
    """Read the runs of a file, an `Export` or a run's own run.json, and why some of them are not read.

    Raises CnnbenchError when the file is neither, or an export of another schema.
    """
    try:
        document = pydantic_core.from_json(path.read_bytes())
    except ValueError as error:
        raise CnnbenchError(f"{path}: not a complete result of schema {SCHEMA}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return [(path.name, check_result(document, str(path)))], []
    version, entries = document.get("schema_version"), document.get("runs")
    if type(version) is not int or version != EXPORT_SCHEMA:
        raise CnnbenchError(
            f"{path}: results of schema {version!r:.40}, needed {EXPORT_SCHEMA}; read them with the version of "
            "cnnbench that wrote them"
        )
    if not isinstance(entries, list):
        raise CnnbenchError(f"{path}: not a complete file of results: it has no list of runs")
    found: list[tuple[str, RunResult]] = []
    failures: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(_read_entry(entry, f"{path}, run {number}"))
        except CnnbenchError as error:
            failures.append(str(error))
    return found, failures


def _read_entry(entry: Any, where: str) -> tuple[str, RunResult]:
    """Return a run of an export by the name of its logs."""
    if not isinstance(entry, dict) or not isinstance(entry.get("logs"), str):
        raise CnnbenchError(f"{where}: has no name of logs (`logs`), as each run of a file of results has")
    return entry["logs"], check_result(entry.get("result"), f"{where} ({entry['logs']})")


def results_schema() -> dict[str, Any]:
    """Return the JSON schema of a file of results; that of a run.json is its `#/$defs/RunResult`."""
    _, schema = models_json_schema([(Export, "serialization")], title="Results of cnnbench")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": "#/$defs/Export",
        **schema,
    }
