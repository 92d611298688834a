"""Read how warm this machine's processors are, by the kernel's monitors; a virtual machine has none."""

from pathlib import Path

from cnnbench.machine.topology import HOST_SYSFS

MONITORS = ("coretemp", "k10temp", "zenpower")
"""The kernel's names for what measures processors: Intel's, and AMD's with and without its own driver."""


def read_temperature_c(sysfs: Path = HOST_SYSFS) -> float | None:
    """Return the highest temperature that a processor of this machine reports now; None where none does."""
    found = []
    for monitor in sorted((sysfs / "class/hwmon").glob("hwmon*")):
        if _read(monitor / "name") in MONITORS:
            texts = [_read(path) for path in monitor.glob("temp*_input")]
            found += [int(text) / 1000 for text in texts if text.lstrip("-").isdecimal()]
    return max(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # a sensor may be there and refuse to answer: it is as good as none
        return ""
