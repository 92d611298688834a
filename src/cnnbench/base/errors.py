"""Define what can go wrong and the exit code each kind ends with; only `cli.py` and modules run by name exit."""

import sys
from collections.abc import Callable


class CnnbenchError(Exception):
    """Something failed: the message says what was found, what was needed and what to do."""

    exit_code = 1


class UsageError(CnnbenchError):
    """A parameter, option or name is not acceptable."""

    exit_code = 2


class InvalidMeasurementError(CnnbenchError):
    """The run ended, but what it measured cannot be trusted."""

    exit_code = 3


class TimeUpInterrupt(KeyboardInterrupt):
    """A time limit is used up: ends whatever is under way as a Ctrl-C would, and tells why."""


class SkippedError(CnnbenchError):
    """The case cannot run on this machine; 77 is ctest's SKIP_RETURN_CODE."""

    exit_code = 77


def exit_code_of(work: Callable[[], object]) -> int:
    """Do the work of a module that is run by its name, and return the exit code; a failure's reason is printed."""
    try:
        work()
    except CnnbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
