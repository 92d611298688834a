"""A host with or without SGX, as its file systems show it."""

from cnnbench.machine.sgx import SgxRoots, missing_for_enclaves
from sysfs import write

GIB = 1 << 30


class SgxHost:
    """A host in fake trees: nothing of SGX there but what a test adds."""

    def __init__(self, root):
        self.roots = SgxRoots(root / "dev", root / "sys", root / "proc")
        (root / "dev").mkdir()
        self.set_flags("fpu avx512f")

    def set_flags(self, flags):
        write(self.roots.proc / "cpuinfo", f"processor : 0\nvendor_id : GenuineIntel\nflags : {flags}\n")

    def add_device(self):
        write(self.roots.dev / "sgx_enclave", "")

    def add_epc(self, node, size_bytes):
        write(self.roots.sysfs / f"devices/system/node/node{node}/x86/sgx_total_bytes", f"{size_bytes}\n")

    def add_everything(self):
        self.set_flags("fpu avx2 fma sgx sgx_lc")
        self.add_device()
        self.add_epc(0, 64 * GIB)

    def missing(self, needed_bytes=8 * GIB):
        return missing_for_enclaves(needed_bytes, self.roots)
