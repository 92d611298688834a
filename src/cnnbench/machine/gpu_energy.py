"""Read what a GPU has used of energy, by NVIDIA's management library (NVML)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cnnbench.machine.energy import Unit, UnreadableError

IN_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""What has CUDA number GPUs as NVML does."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its counter of energy (Volta and later), else its power at a moment."""

    name: str
    unit: Unit
    nvml: Any
    handle: Any
    wraps_at: int | None = None

    def read(self) -> int:
        """Return the energy since the driver was loaded (mJ), or the power (mW)."""
        read = self.nvml.nvmlDeviceGetTotalEnergyConsumption
        if self.unit == "mW":
            read = self.nvml.nvmlDeviceGetPowerUsage
        try:
            return int(read(self.handle))
        except self.nvml.NVMLError as error:
            raise UnreadableError(f"{self.name}: NVML answers: {error}") from error


def find_gpu(environ: Mapping[str, str]) -> Gpu:
    """Return the GPU that CUDA would use first; raise UnreadableError where it has no energy to read, or is not known.

    Of several GPUs CUDA's first is the fastest, which only a UUID or IN_ORDER ties to one of NVML's.
    """
    try:
        import pynvml as nvml
    except ImportError as error:
        raise UnreadableError(f"nvidia-ml-py is not installed ({error}); run script/setup.sh") from error
    try:
        nvml.nvmlInit()
        return _read_once(nvml, *_choose(nvml, environ))
    except nvml.NVMLError as error:
        raise UnreadableError(f"NVML answers: {error}") from error


def _choose(nvml: Any, environ: Mapping[str, str]) -> tuple[str, Any]:
    """Return the name and NVML's handle of the GPU."""
    first = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        handle = nvml.nvmlDeviceGetHandleByUUID(first.encode())
        return f"GPU {first}", handle
    count = nvml.nvmlDeviceGetCount()
    name, value = next(iter(IN_ORDER.items()))
    if count > 1 and environ.get(name) != value:
        raise UnreadableError(
            f"there are {count} GPUs, and CUDA's first may be any of them; set {name}={value}, or CUDA_VISIBLE_DEVICES "
            "to its UUID (nvidia-smi -L)"
        )
    index = int(first) if first.isdigit() else 0
    return f"GPU {index}", nvml.nvmlDeviceGetHandleByIndex(index)


def _read_once(nvml: Any, name: str, handle: Any) -> Gpu:
    """Return the GPU as it can be read."""
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError_NotSupported:
        nvml.nvmlDeviceGetPowerUsage(handle)
        return Gpu(name, "mW", nvml, handle)
    return Gpu(name, "mJ", nvml, handle)
