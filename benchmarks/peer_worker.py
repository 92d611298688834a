"""Be one process of a peer engine: load once, then measure a block of steps each time it is asked to.

Started with the engine's Python as `peer_worker.py SPEC.json`. It answers on the standard output that it was given, one
JSON document a line, while everything that an engine prints goes to standard error. It ends when its parent does.
"""

import ctypes
import errno
import importlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

TRACE_MARK = "peer_worker: traced step"
"""Line after which a trace holds one step of the loaded network, and no preparation."""

WARM_UP = 2

_ARCH_PRCTL = 158
_ARCH_GET_XCOMP_PERM, _ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_TILE_DATA = 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2

Steps = list[list[int]]
"""Rows of start, input ready and end (ns, CLOCK_MONOTONIC), as the product records them."""


@dataclass(frozen=True)
class PeerSpec:
    """What one process is told. Paths are absolute.

    `module`: the engine's. `artefacts`: the directory with what the engine reads. `data_type`: fp32, bfloat16, bfloat32
    (float32 computed in bfloat16) or int8. `amx`: whether it may use AMX. `outputs`: where its answers to the check
    images go. `trace`: end after one step that stands alone in oneDNN's trace.
    """

    module: str
    artefacts: str
    data_type: str
    amx: bool
    mode: str
    batch_size: int
    cpus: list[int]
    check_images: str
    outputs: str
    trace: bool = False

    def write(self, path: Path) -> None:
        """Write the spec as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))


class Peer(Protocol):
    """One engine with the network loaded; made from a PeerSpec."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the class probabilities (float32, N x 1001) of images (float32, N x 224 x 224 x 3)."""

    def executed(self) -> dict[str, float]:
        """Return what ran, by the engine's own names, with the share of the layers; empty if oneDNN's trace tells."""

    def versions(self) -> str:
        """Return the versions that decide what runs."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def refuse_amx() -> None:
    """Have the kernel refuse AMX to this process from now on, whatever the engine and its own switches.

    AMX's registers must be asked for with arch_prctl(ARCH_REQ_XCOMP_PERM); the filter answers that with EPERM. An
    engine then takes its next best kernels, and one that used AMX all the same would be killed by the CPU's fault.
    """
    load, jump_if_equal, give = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    number_offset, first_argument_offset = 0, 16  # in struct seccomp_data
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    rows = (
        (load, 0, 0, number_offset),
        (jump_if_equal, 0, 3, _ARCH_PRCTL),
        (load, 0, 0, first_argument_offset),
        (jump_if_equal, 0, 1, _ARCH_REQ_XCOMP_PERM),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    )
    program = _Program(len(rows), (_Instruction * len(rows))(*(_Instruction(*row) for row in rows)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), f"seccomp, which keeps AMX away: {os.strerror(ctypes.get_errno())}")


def amx_permitted() -> bool:
    """Tell whether this process has asked for AMX's registers and got them."""
    mask = ctypes.c_ulong(0)
    ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_GET_XCOMP_PERM, ctypes.byref(mask))
    return bool(mask.value & _TILE_DATA)


def fill_batch(images: np.ndarray, size: int) -> np.ndarray:
    """Return a batch of exactly `size` images, repeating the given ones."""
    return np.ascontiguousarray(images[np.arange(size) % len(images)])


def measure_calls(peer: Peer, batch: np.ndarray, begin_ns: int, end_ns: int) -> list[Steps]:
    """Run steps, and record those from `begin_ns` on, until `end_ns` and at least one; the last one may end later."""
    clock, infer = time.monotonic_ns, peer.infer
    now = clock()
    while now < begin_ns:
        infer(batch)
        now = clock()
    steps: Steps = []
    while now < end_ns or not steps:
        infer(batch)
        done = clock()
        steps.append([now, now, done])
        now = done
    return [steps]


def check_outputs(peer: Peer, images: np.ndarray, size: int) -> np.ndarray:
    """Return the answers to all images, asked for in batches of the measured size."""
    outputs = [np.array(peer.infer(fill_batch(images[at:], size))) for at in range(0, len(images), size)]
    return np.concatenate(outputs)[: len(images)]


def work(spec: PeerSpec, commands: TextIO, answers: TextIO) -> None:
    """Load, report, and measure a block for each line of commands."""
    module = importlib.import_module(spec.module)
    peer: Peer = module.load(spec)
    images = np.load(spec.check_images)
    batch = fill_batch(images, spec.batch_size)
    for _ in range(1 if spec.trace else WARM_UP):
        peer.infer(batch)
    ready: dict[str, Any] = {"versions": peer.versions(), "executed": peer.executed(), "amx_permitted": amx_permitted()}
    if spec.trace:
        os.write(1, f"{TRACE_MARK}\n".encode())
        peer.infer(batch)
        print(json.dumps(ready), file=answers, flush=True)
        return
    np.save(spec.outputs, check_outputs(peer, images, spec.batch_size))
    print(json.dumps(ready), file=answers, flush=True)
    measure = getattr(module, "measure", measure_calls)
    for line in commands:
        begin_ns, end_ns = json.loads(line)
        print(json.dumps(measure(peer, batch, begin_ns, end_ns)), file=answers, flush=True)


def main() -> None:
    """Take the standard output for the answers alone, pin, and work."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = PeerSpec(**json.loads(Path(sys.argv[1]).read_text()))
    os.sched_setaffinity(0, spec.cpus)  # before the engine starts its threads: they inherit it
    if not spec.amx:
        refuse_amx()
    work(spec, sys.stdin, answers)


if __name__ == "__main__":
    main()
