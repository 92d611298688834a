"""CPU quotas, from fake cgroup trees and from a real cgroup with a run inside."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnbench.machine.cgroup import CpuQuota, find_cgroups, read_cpu_quotas
from cnnbench.results.record import load_run
from null_workload import PATIENCE_S, NullWorkload, clean_environment, step_of, wait_until
from sysfs import write

V2_STAT = "usage_usec 900\nnr_periods 10\nnr_throttled 4\nthrottled_usec {}"
V1_STAT = "nr_periods 10\nnr_throttled 4\nthrottled_time {}"


def make_proc_self(tmp_path, membership, *mounts):
    write(tmp_path / "proc/cgroup", membership)
    write(tmp_path / "proc/mountinfo", "\n".join(mounts))
    return tmp_path / "proc"


def mount_v1(point, controllers="cpu,cpuacct", root="/"):
    return f"34 31 0:31 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,{controllers}"


def mount_v2(point, root="/"):
    return f"30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def write_v2(directory, limit, throttled_us=0):
    write(directory / "cpu.max", limit)
    write(directory / "cpu.stat", V2_STAT.format(throttled_us))
    return directory


def write_v1(directory, quota_us, throttled_ns=0):
    write(directory / "cpu.cfs_quota_us", str(quota_us))
    write(directory / "cpu.cfs_period_us", "100000")
    write(directory / "cpu.stat", V1_STAT.format(throttled_ns))
    return directory


def test_a_v2_quota_and_its_throttled_time(tmp_path):
    job = write_v2(tmp_path / "cg/user/job", "150000 100000", throttled_us=2_500_000)
    proc = make_proc_self(tmp_path, "0::/user/job", mount_v2(tmp_path / "cg"))
    assert read_cpu_quotas(proc) == (CpuQuota(job, cpus=1.5, throttled_s=2.5),)


def test_a_quota_of_a_process_in_another_container(tmp_path):
    """Its mount points are those below its own root, and its cgroup is none below ours."""
    job = write_v2(tmp_path / "root/cg", "50000 100000", throttled_us=1_000_000)
    proc = make_proc_self(tmp_path, "0::/../other", mount_v2("/cg", root="/../other"))
    assert read_cpu_quotas(proc, tmp_path / "root") == (CpuQuota(job, cpus=0.5, throttled_s=1),)


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_a_v1_quota_and_its_throttled_time(tmp_path, controllers):
    job = write_v1(tmp_path / "cpu/docker/abc", 50_000, throttled_ns=2_500_000_000)
    write_v1(tmp_path / "cpu", -1)
    membership = f"5:memory:/else\n4:{controllers}:/docker/abc\n3:cpuset:/else"
    proc = make_proc_self(tmp_path, membership, mount_v1(tmp_path / "cpu", controllers))
    assert read_cpu_quotas(proc) == (CpuQuota(job, cpus=0.5, throttled_s=2.5),)


def test_the_quotas_of_all_levels_count_and_the_nearest_comes_first(tmp_path):
    job = write_v2(tmp_path / "cg/pods/pod/job", "400000 100000")
    write_v2(tmp_path / "cg/pods/pod", "max 100000")
    pods = write_v2(tmp_path / "cg/pods", "100000 50000", throttled_us=7)
    write(tmp_path / "cg/cpu.stat", "usage_usec 900")  # the root of the host has neither limit nor throttling
    proc = make_proc_self(tmp_path, "0::/pods/pod/job", mount_v2(tmp_path / "cg"))
    assert read_cpu_quotas(proc) == (CpuQuota(job, 4, 0), CpuQuota(pods, 2, 7e-6))


def test_on_a_hybrid_system_the_hierarchy_that_has_the_controller_counts(tmp_path):
    job = write_v1(tmp_path / "cpu/job", 200_000)
    write(tmp_path / "unified/job/cpu.stat", "usage_usec 900\nuser_usec 1\nsystem_usec 1")
    proc = make_proc_self(
        tmp_path, "1:cpu:/job\n0::/job", mount_v2(tmp_path / "unified"), mount_v1(tmp_path / "cpu", "cpu")
    )
    assert read_cpu_quotas(proc) == (CpuQuota(job, 2, 0),)


@pytest.mark.parametrize(
    ("membership", "root"),
    [
        ("0::/", "/"),  # with a cgroup namespace of its own
        ("0::/docker/abc", "/"),  # a path of the host, which is not there
        ("0::/../../docker/abc", "/"),
        ("4:cpu,cpuacct:/docker/abc", "/docker/abc"),
        ("4:cpu,cpuacct:/docker/abc", "/"),
        ("4:cpu,cpuacct:/docker/abc", "/docker/another"),
    ],
)
def test_in_a_container_its_own_cgroup_is_the_root_of_the_mount(tmp_path, membership, root):
    point = tmp_path / "cg"
    if membership.startswith("0::"):
        mount = mount_v2(write_v2(point, "150000 100000"), root)
    else:
        mount = mount_v1(write_v1(point, 150_000), root=root)
    assert read_cpu_quotas(make_proc_self(tmp_path, membership, mount)) == (CpuQuota(point, 1.5, 0),)


def test_no_limit_is_no_quota(tmp_path):
    write_v2(tmp_path / "cg/job", "max 100000", throttled_us=5)
    assert read_cpu_quotas(make_proc_self(tmp_path, "0::/job", mount_v2(tmp_path / "cg"))) == ()
    write_v1(tmp_path / "cpu", -1)
    assert read_cpu_quotas(make_proc_self(tmp_path, "4:cpu,cpuacct:/", mount_v1(tmp_path / "cpu"))) == ()
    assert read_cpu_quotas(tmp_path / "absent") == ()


def test_a_quota_whose_throttling_nobody_counts(tmp_path):
    write(tmp_path / "cg/cpu.max", "150000 100000")
    proc = make_proc_self(tmp_path, "0::/", mount_v2(tmp_path / "cg"))
    assert read_cpu_quotas(proc) == (CpuQuota(tmp_path / "cg", 1.5, None),)


def make_limited_cgroup(cpus):
    """Make a cgroup with a quota inside our own, or skip where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("making a cgroup needs root")
    refusals = []
    for own in (levels[0] for levels in find_cgroups("cpu")):
        directory, quota_us = own / f"cnnbench-test-{os.getpid()}", round(100_000 * cpus)
        try:
            directory.mkdir()
            try:
                if (directory / "cpu.cfs_quota_us").exists():
                    (directory / "cpu.cfs_quota_us").write_text(f"{quota_us}")
                else:
                    (directory / "cpu.max").write_text(f"{quota_us} 100000")
            except OSError:
                directory.rmdir()
                raise
        except OSError as error:
            refusals.append(f"{error.filename}: {error.strerror}")
        else:
            return directory
    return pytest.skip(f"no cgroup with a CPU quota can be made here: {'; '.join(refusals) or 'there are no cgroups'}")


@pytest.fixture
def limited(request):
    """A cgroup with a quota, in which something is busy all the time: the directory and that process."""
    directory = make_limited_cgroup(request.param)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            (directory / "cgroup.procs").write_text(str(process.pid))
            yield directory, process.pid
        finally:
            process.kill()
            process.wait()
            wait_until(lambda: not (directory / "cgroup.procs").read_text(), "the end of all processes of the cgroup")
            directory.rmdir()


def run_inside(directory, workload):
    """Run a case of one core in a cgroup; return what it prints and its result."""
    command = workload.command("--steps=300", "--instances=1", "--cores_per_instance=1", step_of(5))
    done = subprocess.run(
        ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(directory / "cgroup.procs"), *command],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, load_run(workload.logs())


@pytest.mark.parametrize("limited", [0.25], indirect=True)
def test_a_throttled_run_is_unstable_and_says_what_to_do(tmp_path, limited):
    output, run = run_inside(limited[0], NullWorkload(tmp_path))
    assert run.facts["CPU quota"] == "0.25 CPUs"
    (share,) = (kpi.value for kpi in run.kpis if kpi.key == "Throttled time")
    assert share > 5
    assert run.verdict == "unstable"
    (criterion,) = (one for one in run.failures if one.name == "throttling")
    assert criterion.found.startswith("a CPU quota of 0.25 held work back ")
    assert "raise or remove the quota (docker's --cpus, as in DOCKER_OPTIONS; " in output


@pytest.mark.parametrize("limited", [64], indirect=True)
def test_a_quota_that_is_not_reached_is_only_told(tmp_path, limited):
    _, run = run_inside(limited[0], NullWorkload(tmp_path))
    assert run.facts["CPU quota"] == "64 CPUs"
    assert [kpi.value for kpi in run.kpis if kpi.key == "Throttled time"] == [0]
    (criterion,) = (one for one in run.criteria if one.name == "throttling")
    assert criterion.passed


@pytest.mark.parametrize("limited", [0.1], indirect=True)
def test_a_real_quota_is_read_as_it_was_set(limited):
    def look():
        return next(one for one in read_cpu_quotas(Path(f"/proc/{limited[1]}")) if one.cgroup == limited[0])

    first = look()
    time.sleep(1)
    last = look()
    assert first.cpus == last.cpus == 0.1
    assert 0.1 < last.throttled_s - first.throttled_s < 1.5


def test_without_a_quota_nothing_is_said_of_it(tmp_path):
    if read_cpu_quotas():
        pytest.skip(f"this process has a CPU quota: {read_cpu_quotas()}")
    workload = NullWorkload(tmp_path)
    assert workload.run("--steps=20", step_of(2)).returncode == 0
    run = load_run(workload.logs())
    assert "CPU quota" not in run.facts
    assert "Throttled time" not in [kpi.key for kpi in run.kpis]
    assert "throttling" not in [criterion.name for criterion in run.criteria]
