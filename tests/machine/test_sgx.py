import os
import stat

import pytest

from cnnbench.base.errors import SkippedError
from cnnbench.machine.sgx import (
    epc_notes,
    missing_on_host,
    missing_tools,
    read_epc_bytes,
    require_sgx,
)
from sgx_host import GIB, SgxHost
from sysfs import write

CASE = "test_x_sgx_inference_throughput_amx_bfloat16"


@pytest.fixture
def host(tmp_path):
    return SgxHost(tmp_path)


def test_a_host_without_sgx_lacks_flags_and_device(host):
    flags, device = host.missing()
    assert flags.startswith("CPU flags sgx and sgx_lc: not in ")
    assert "BIOS" in flags
    assert "dev/sgx_enclave: not there: needed is Linux 5.11 or later" in device
    assert "--device" in device


def test_without_launch_control_only_that_flag_is_named(host):
    host.set_flags("fpu sgx")
    assert host.missing()[0].startswith("CPU flags sgx_lc: not in ")


def test_a_device_with_an_epc_that_is_too_small(host):
    host.set_flags("sgx sgx_lc")
    host.add_device()
    host.add_epc(0, 128 << 20)
    (epc,) = host.missing()
    assert epc.startswith("EPC: found 0.1 GiB, needed 8.0 GiB: ")
    assert "INSTANCES" in epc


def test_a_host_that_has_it_all(host):
    host.set_flags("sgx sgx_lc")
    host.add_device()
    host.add_epc(0, 4 * GIB)
    host.add_epc(1, 4 * GIB)
    assert host.missing() == []
    assert read_epc_bytes(host.roots.sysfs) == 8 * GIB
    assert epc_notes(host.roots.sysfs) == []
    require_sgx(CASE, host.missing())


def test_an_epc_that_the_kernel_does_not_show_is_noted_and_not_missing(host):
    host.set_flags("sgx sgx_lc")
    host.add_device()
    assert host.missing() == []
    assert "not shown by this kernel" in epc_notes(host.roots.sysfs)[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_device_of_another_group(host):
    host.add_device()
    host.roots.device.chmod(stat.S_IRUSR)
    assert f"join group {host.roots.device.stat().st_gid}" in host.missing()[1]
    assert len(missing_on_host(host.roots)) == 1  # the flags: who uses the device is the container's matter


def test_what_fits_is_not_the_hosts_matter(host):
    host.set_flags("sgx sgx_lc")
    host.add_device()
    host.add_epc(0, 1)
    assert missing_on_host(host.roots) == []
    assert len(host.missing()) == 1


def test_tools_that_are_not_on_path_are_named_with_their_package(tmp_path):
    tool = tmp_path / "gramine-sgx"
    write(tool, "#!/bin/sh\n")
    tool.chmod(0o755)
    missing = missing_tools(str(tmp_path))
    assert [item.partition(":")[0] for item in missing] == [
        "gramine-sgx-sign",
        "gramine-sgx-gen-private-key",
        "setpriv",
        "taskset",
    ]
    assert "Gramine" in missing[0]


def test_the_skip_names_every_missing_thing(host):
    host.add_epc(0, 1)
    missing = [*host.missing(), *missing_tools("")]
    assert len(missing) == 8
    with pytest.raises(SkippedError) as error:
        require_sgx(CASE, missing)
    assert all(item in str(error.value) for item in missing)
    assert str(error.value).startswith(CASE)
