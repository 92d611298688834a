"""A stand-in for NVIDIA's driver: a library of its name, whose cuInit answers as it is told."""

import shutil
import subprocess

import pytest

from cnnbench.machine.host import GPU_DRIVER

FOUND, NO_DEVICE = 0, 100


def write_gpu_driver(directory, code):
    """Write the library; programs find it where LD_LIBRARY_PATH names the directory. Skips without a C compiler."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler to make a library with")
    source = directory / "driver.c"
    source.write_text(f"int cuInit(unsigned flags) {{ (void)flags; return {code}; }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", directory / GPU_DRIVER, source], check=True)
    return directory / GPU_DRIVER
