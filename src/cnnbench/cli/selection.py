"""Find the cases that arguments of ctest select: ctest itself is content to run none, whatever the reason."""

import difflib
import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.base.errors import CnnbenchError, UsageError

_BY_NAME = ("-R", "--tests-regex")
_BY_LABEL = ("-L", "--label-regex")
_BY_NUMBER = ("-I", "--tests-information")
_LEFT_OUT = ("-E", "--exclude-regex", "-LE", "--label-exclude")
_FIXTURES = ("-FA", "--fixture-exclude-any", "-FS", "--fixture-exclude-setup", "-FC", "--fixture-exclude-cleanup")
_FILTERS = (*_BY_NAME, *_BY_LABEL, *_BY_NUMBER, *_LEFT_OUT, *_FIXTURES)
"""The options of ctest that choose cases by a value."""

# With these ctest runs none of the cases.
_OTHER_WORK = ("-N", "--show-only", "--print-labels", "--list-presets", "-S", "--script", "-SP", "--script-new-process",
               "--build-and-test", "--version", "-version", "/V", "-H", "-help", "-usage", "/?")  # fmt: skip

_COMPLAINT = re.compile(r"^RegularExpression::compile\(\): (?!Error in compile)(.*?)\.?$", re.MULTILINE)
"""How ctest says what is wrong with a regular expression, of which it does not say which."""
_COMPLAINTS = re.compile(r"^RegularExpression::.*\n", re.MULTILINE)
"""All that it says of that, amid the listing."""


@dataclass(frozen=True)
class _Listing:
    """The cases that a command of ctest would run, with their labels; and what is wrong with its expressions."""

    labels: dict[str, list[str]]
    complaint: str


FLAGS = ("-h", "--help", "--describe-params", "--continue", "--dry-run", "--stop", "--status")
VALUED = ("--set", "--loop", "--config", "--testcase", "--options")
"""What ctest.sh has besides ctest's options: such as stand alone, and such as need a value."""


def runs_cases(words: Sequence[str]) -> bool:
    """Say whether ctest runs cases with these arguments; else it lists them or does something else."""
    return not any(word.partition("=")[0] in _OTHER_WORK or word.startswith("--help") for word in words)


def list_cases(build_dir: Path, command: Sequence[str]) -> list[str]:
    """Return the names of the cases that a ctest command would run."""
    return list(_list(build_dir, command).labels)


def select_cases(build_dir: Path, command: Sequence[str]) -> list[str]:
    """Return the names of the cases that a ctest command would run.

    Raises UsageError where there is none, unless --no-tests=ignore accepts that, and where a filter or an option is
    none: ctest would take no notice of it, and run other cases than those that are wanted.
    """
    ctest, *words = command
    _refuse_unknown(ctest, words)
    filters = _read_filters(words, build_dir)
    found = _list(build_dir, command)
    if found.complaint:
        bad = [f"{option} {value}" for option, value in filters if _list(build_dir, [ctest, option, value]).complaint]
        raise UsageError(
            f"{(bad or [shlex.join(words)])[0]}: no regular expression of ctest's: {found.complaint}; "
            "a \\ before a character takes it as it is"
        )
    if not found.labels and "--no-tests=ignore" not in words:
        raise UsageError(_explain(build_dir, ctest, words, filters))
    return list(found.labels)


def check_case(name: str, known: Sequence[str]) -> None:
    """Raise UsageError for a name that no case has."""
    if name not in known:
        close = difflib.get_close_matches(name, known, cutoff=0.3)
        raise UsageError(f"--testcase {name}: no such case here; {_hint(close)}")


def _list(build_dir: Path, command: Sequence[str]) -> _Listing:
    listing = subprocess.run([*command, "--show-only=json-v1"], cwd=build_dir, capture_output=True, text=True)
    complaint = _COMPLAINT.search(listing.stdout + listing.stderr)
    try:
        tests = json.loads(_COMPLAINTS.sub("", listing.stdout))["tests"]
    except (json.JSONDecodeError, KeyError) as error:
        said = (listing.stderr or listing.stdout).strip()
        raise CnnbenchError(f"{shlex.join(command)} (in {build_dir}): could not list the cases: {said}") from error
    return _Listing({test["name"]: _labels_of(test) for test in tests}, complaint[1] if complaint else "")


def _labels_of(test: dict) -> list[str]:
    return [label for one in test.get("properties", ()) if one["name"] == "LABELS" for label in one["value"]]


def _refuse_unknown(ctest: str, words: Iterable[str]) -> None:
    """Raise UsageError for an option that ctest does not have, as far as its own help tells."""
    asked = [word.partition("=")[0] for word in words if word.startswith("--")]
    if not asked:
        return
    told = subprocess.run([ctest, "--help"], capture_output=True, text=True).stdout
    known = set(re.findall(r"--[a-z][\w-]*", told))
    if "--tests-regex" not in known:  # another ctest tells it otherwise
        return
    for name in asked:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *FLAGS, *VALUED], n=1)
            hint = f"did you mean {close[0]}?" if close else "see --help, and ctest --help"
            raise UsageError(f"{name}: neither ctest.sh nor ctest has it; {hint}")


def _read_filters(words: Iterable[str], build_dir: Path) -> list[tuple[str, str]]:
    """Return the filters among arguments with their values; raise UsageError for what ctest would pass over."""
    filters: list[tuple[str, str]] = []
    remaining = iter(words)
    for word in remaining:
        option, separator, value = word.partition("=")
        if option not in _FILTERS:
            continue
        text = value if separator else next(remaining, None)
        if text is None:
            raise UsageError(f"{option}: needs a value, or ctest runs all cases; see ctest --help")
        if option in _BY_NUMBER and not re.fullmatch(r"[\d,]*", text) and not (build_dir / text).is_file():
            raise UsageError(f"{option} {text}: must be Start,End,Stride,number,number... or a file of that")
        filters.append((option, text))
    return filters


def _explain(build_dir: Path, ctest: str, words: Sequence[str], filters: Sequence[tuple[str, str]]) -> str:
    """Say which filter it is that leaves no case, and what it may be misspelt for."""
    labels = _list(build_dir, [ctest]).labels
    if not labels:
        return f"{build_dir}: has no case to run; cmake says why when it configures"
    for option, value in filters:
        if not list_cases(build_dir, [ctest, option, value]):
            names = labels if option in _BY_NAME else {label for own in labels.values() for label in own}
            close = _find_close(value, names) if option in (*_BY_NAME, *_BY_LABEL) else []
            return f"{option} {value}: selects none of the {len(labels)} cases; {_hint(close)}"
    return f"{shlex.join(words)}: selects no case, though each part of it does; -N lists what there is"


def _hint(close: Sequence[str]) -> str:
    return f"did you mean {' or '.join(close)}?" if close else "-N lists what there is"


def _find_close(wanted: str, names: Iterable[str]) -> list[str]:
    """Return the parts of names, of words between underscores, that an expression may be misspelt for."""
    names = list(names)
    unknown = [token for token in re.findall(r"\w+", wanted) if not any(token in name for name in names)]
    close: list[str] = []
    for token in unknown or [re.sub(r"\W+", "_", wanted)]:
        text = token.strip("_").lower()
        parts = sorted({part for name in names for part in _parts_of(name.split("_"), text.count("_") + 1)})
        close += [text] if text in parts else difflib.get_close_matches(text, parts)
    return list(dict.fromkeys(close))[:3]


def _parts_of(words: Sequence[str], length: int) -> list[str]:
    return ["_".join(words[at : at + length]) for at in range(len(words) - length + 1)]
