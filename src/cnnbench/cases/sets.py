"""Read `--set` texts into the combinations of parameter values to run: pure, nothing is run here.

`BATCH_SIZE=1 8 32/CORES_PER_INSTANCE=1 2` enumerates the values of each name and permutes the names, the first one
changing slowest. Several texts zip. `1 2 4 ...32` and `1 3 5 ...9` are a geometric and a linear series.
"""

import itertools
import math
import re
from collections.abc import Sequence

from cnnbench.base.errors import UsageError
from cnnbench.cases.case import FIXED_BY_NAME, check_name

Combination = dict[str, str]

TEXTS = ("CUSTOMER_ENV", "MODEL")
"""The parameters whose whole text is one value."""
MOST_RUNS = 10_000

_NEXT_DIMENSION = re.compile(r"/(?=[A-Za-z_][A-Za-z0-9_]*=)")  # any other / belongs to a value, such as a path
_SERIES = "..."


def read_sweep(texts: Sequence[str]) -> list[Combination]:
    """Return the combinations that repeated `--set` texts ask for, in the order of running; one empty one for none.

    Texts with several combinations must have equally many; one with a single combination goes with all of them.
    Raises UsageError saying which text is malformed and what was needed.
    """
    sets = [_read_set(text) for text in texts]
    names: list[str] = []
    for combinations, text in zip(sets, texts, strict=True):
        for name in combinations[0]:
            if name in names:
                raise UsageError(f'--set "{text}": {name} is given in another --set already; give it once')
            names.append(name)
    counts = [len(combinations) for combinations in sets]
    runs = max(counts, default=1)
    if any(count not in (1, runs) for count in counts):
        found = ", ".join(f'{count} of "{text}"' for count, text in zip(counts, texts, strict=True))
        raise UsageError(
            f"--set: combinations zip, so all must have as many or one, but there are {found}; "
            "put the names in one --set, separated by /, to permute them"
        )
    rows = zip(*(itertools.islice(itertools.cycle(combinations), runs) for combinations in sets), strict=True)
    return [_merge(row) for row in rows] or [{}]


def _merge(combinations: Sequence[Combination]) -> Combination:
    return {name: value for combination in combinations for name, value in combination.items()}


def _read_set(text: str) -> list[Combination]:
    """Return the permutations of one `--set` text."""
    dimensions: dict[str, list[str]] = {}
    for part in _NEXT_DIMENSION.split(text):
        name, separator, values = part.partition("=")
        name = name.strip()
        if not separator:
            raise UsageError(f'--set "{text}": not understood; write it as "NAME=VALUE VALUE/NAME=VALUE"')
        check_name(name)
        if name in FIXED_BY_NAME:
            raise UsageError(
                f'--set "{text}": {name} is fixed by a case\'s name; choose cases with -R, -L or --testcase instead'
            )
        if name in dimensions:
            raise UsageError(f'--set "{text}": {name} is there twice; give all its values once')
        dimensions[name] = [values.strip()] if name in TEXTS else _enumerate(name, values)
    if math.prod(len(values) for values in dimensions.values()) > MOST_RUNS:
        raise UsageError(f'--set "{text}": more than {MOST_RUNS} combinations; give fewer values')
    return [dict(zip(dimensions, row, strict=True)) for row in itertools.product(*dimensions.values())]


def _enumerate(name: str, text: str) -> list[str]:
    """Return the values that a text of words, the last of which may end a series, stands for."""
    words = re.sub(rf"{re.escape(_SERIES)}\s+", _SERIES, text).split()
    if not words:
        raise UsageError(f"{name}= (--set): needs a value")
    if not any(word.startswith(_SERIES) for word in words):
        return words
    written = f"{name}={text.strip()} (--set)"
    *leading, end = words
    if not end.startswith(_SERIES) or any(word.startswith(_SERIES) for word in leading):
        raise UsageError(f"{written}: ... must stand once, before the last value, as in 1 2 4 ...32")
    numbers = [*leading, end.removeprefix(_SERIES)]
    if not all(re.fullmatch(r"-?[0-9]{1,18}", number) for number in numbers):
        raise UsageError(f"{written}: a series with ... must be of whole numbers, as in 1 2 4 ...32")
    return [str(term) for term in _continue_series(written, [int(word) for word in leading], int(numbers[-1]))]


def _continue_series(written: str, leading: Sequence[int], end: int) -> list[int]:
    """Return the leading terms and those that follow them up to `end`, which must be one."""
    if len(leading) < 2:
        raise UsageError(f"{written}: a series needs 2 terms before ... if it is linear, 3 if it is geometric")
    step = leading[1] - leading[0]
    ratio = leading[1] // leading[0] if leading[0] else 0
    pairs = list(itertools.pairwise(leading))
    linear = step != 0 and all(after - before == step for before, after in pairs)
    geometric = len(leading) > 2 and ratio > 1 and all(after == before * ratio for before, after in pairs)
    if not linear and not geometric:
        raise UsageError(
            f"{written}: {' '.join(map(str, leading))} is neither linear (equal differences) "
            "nor geometric (3 terms or more with one whole ratio)"
        )
    terms = list(leading)
    forwards = 1 if leading[-1] > leading[-2] else -1
    while (end - terms[-1]) * forwards > 0:
        if len(terms) == MOST_RUNS:
            raise UsageError(f"{written}: more than {MOST_RUNS} terms; end it earlier or give fewer")
        terms.append(terms[-1] + step if linear else terms[-1] * ratio)
    if terms[-1] != end and len(terms) == len(leading):
        raise UsageError(f"{written}: ...{end} lies before {leading[-1]}, the last term that is written")
    if terms[-1] != end:
        raise UsageError(f"{written}: {end} is not in the series; the nearest terms are {terms[-2]} and {terms[-1]}")
    return terms
