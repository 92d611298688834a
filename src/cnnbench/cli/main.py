"""The command line: the only place that parses arguments, prints for people or decides an exit code."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from cnnbench.base.disk import describe_refusal
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.base.signals import INTERRUPTED
from cnnbench.base.variables import check_spelling
from cnnbench.cli.commands import Command, find_command, help_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see errors.py for what the codes mean."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        check_spelling(os.environ)
        return _call(words)
    except CnnbenchError as error:
        print(f"cnnbench: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # the disk, a permission, a file that went away: whatever was under way has failed
        print(f"cnnbench: {describe_refusal(error)}", file=sys.stderr)
        return CnnbenchError.exit_code
    except KeyboardInterrupt:
        print("cnnbench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _call(words: Sequence[str]) -> int:
    """Import the command's module, have it read its options, and run it."""
    if not words:
        print(help_text(), end="\n\n", file=sys.stderr)
        raise UsageError("a COMMAND is required")
    name, *own = words
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    command = find_command(name)
    module = importlib.import_module(command.module)
    code: int = module.run(_parse(name, command, module, own))
    return code


def _parse(name: str, command: Command, module: ModuleType, words: list[str]) -> argparse.Namespace:
    """Return a command's options, and in `rest` the words that it leaves to others."""
    if command.rest == "all":
        return argparse.Namespace(rest=words)
    at = words.index("--") if command.rest == "after --" and "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog=f"cnnbench {name}", description=f"{command.summary[0].upper()}{command.summary[1:]}."
    )
    module.add_options(parser)
    parsed, unknown = parser.parse_known_args(words[:at])
    if unknown and command.rest != "unknown":
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    parsed.rest = unknown or words[at + 1 :]
    return parsed
