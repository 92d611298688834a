"""Define what can go wrong and the exit code each kind ends with; only `cli.py` exits."""


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
