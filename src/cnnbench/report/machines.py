"""Tell by their facts which machine runs were made on, and give each machine a name that can be a folder's."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cnnbench.machine.facts import HOST_NAME
from cnnbench.report.text import printable
from cnnbench.results.record import RunResult

UNKNOWN_HOST = "unknown-host"
"""What machines are called whose runs do not tell a name."""


@dataclass(frozen=True)
class Machine:
    """A machine that runs were made on.

    `name`: one of its own, which can be a folder's. `host`, `cpu`, `microcode`: what its runs say; empty where none
    does.
    """

    name: str
    host: str
    cpu: str
    microcode: str

    def may_be(self, other: "Machine") -> bool:
        """Say whether nothing that both tell differs."""
        return self.host == other.host and all(
            "" in pair or pair[0] == pair[1] for pair in ((self.cpu, other.cpu), (self.microcode, other.microcode))
        )


class Machines:
    """The machines that there are, in the order in which they were first seen."""

    def __init__(self, known: Iterable[Machine] = ()) -> None:
        self._known = list(known)
        self._of_host: dict[str, list[int]] = {}
        for number, one in enumerate(self._known):
            self._of_host.setdefault(one.host, []).append(number)

    @property
    def known(self) -> list[Machine]:
        """All of them."""
        return list(self._known)

    @property
    def told_apart(self) -> list[str]:
        """Say of which machines the host name alone does not tell which they are."""
        return [
            printable(
                f"{one.name}: a machine that calls itself {one.host or 'nothing'} as another does, but is not it "
                f"(CPU {one.cpu or 'not told'}, microcode {one.microcode or 'not told'})"
            )
            for number, one in enumerate(self._known)
            if number != self._of_host[one.host][0]
        ]

    def find(self, run: RunResult) -> Machine:
        """Return the machine of a run, a new one where no known one has its host name, CPU and microcode."""
        facts = run.facts
        seen = Machine("", facts.get(HOST_NAME, ""), facts.get("CPU", ""), facts.get("microcode", ""))
        for number in self._of_host.get(seen.host, ()):
            one = self._known[number]
            if one.may_be(seen):
                if seen.cpu and seen.microcode and not (one.cpu and one.microcode):
                    self._known[number] = one = Machine(one.name, one.host, seen.cpu, seen.microcode)
                return one
        one = Machine(self._name(seen.host), seen.host, seen.cpu, seen.microcode)
        self._of_host.setdefault(one.host, []).append(len(self._known))
        self._known.append(one)
        return one

    def _name(self, host: str) -> str:
        """Return a name that no other machine has, of letters that every file system takes."""
        base = re.sub(r"[^A-Za-z0-9._-]", "_", host)[:200].lstrip(".") or UNKNOWN_HOST
        base = f"host-{base}" if base.startswith("logs-") else base
        taken = {one.name for one in self._known}
        number = 1
        while (name := base if number == 1 else f"{base}-{number}") in taken:
            number += 1
        return name
