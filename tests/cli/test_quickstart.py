"""run.sh: the quick start on the null engine in a real process, and the set-up before it."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import WORKLOAD
from cmake_build import run_cmake
from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.cases.case import TestCase
from cnnbench.cases.parameters import precisions_of
from cnnbench.cases.platforms import detect_platform
from cnnbench.cases.precisions import PRECISIONS, missing_for_precision
from cnnbench.cases.workload import load_sections
from cnnbench.cli.configuring import find_tool
from cnnbench.cli.quickstart import DEFAULTS, _split_precisions
from cnnbench.engines.null.backend import STEP_TIME
from cnnbench.engines.registry import find_engine
from cnnbench.machine.host import CpuInfo, read_cpuinfo
from cnnbench.results.record import load_run
from null_workload import (
    PATIENCE_S,
    ROOT,
    SLUG,
    THROUGHPUT,
    clean_environment,
    find_workers,
    process_files,
    step_of,
    wait_until,
    write_checkout,
)
from read_table import read_table, read_tables

PROGRAM = """
import sys
from pathlib import Path
from cnnbench.cli import quickstart
from cnnbench.cli.main import main
root, on_any = Path(sys.argv[1]), quickstart.quickstart
quickstart.quickstart = lambda cache, arguments, timings: on_any(cache, arguments, timings, root, "Harness")
sys.exit(main(["quickstart", *sys.argv[2:]]))
"""
"""`cnnbench quickstart`, but on the workload of a checkout of the null engine."""

KNOWN = precisions_of("graph")
"""The precisions that such a workload may have, as it runs no networks."""


@pytest.fixture
def checkout(tmp_path):
    checkout = write_checkout(tmp_path / "checkout", detect_platform(read_cpuinfo()))
    shutil.copy(WORKLOAD / DEFAULTS, checkout / "workload" / "Harness")
    return checkout


@pytest.fixture
def every_precision(checkout):
    """The checkout with the cases that the quick start knows, at every precision."""
    workload = checkout / "workload" / "Harness"
    (workload / "CMakeLists.txt").write_text("add_workload(CASES throughput latency throughput_pkm)\n")
    for declaration in (workload / "cmake").iterdir():
        declaration.write_text(f"set(PRECISIONS {' '.join(KNOWN)})\n")
    return checkout


def start(checkout, *arguments, choice=("-R", f"{THROUGHPUT}$"), **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, checkout, *choice, *arguments],
        env=clean_environment(CNNBENCH_CACHE=str(checkout / "cache"), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(checkout, *arguments, **environment):
    with start(checkout, *arguments, **environment) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    (logs,) = (checkout / "build" / "workload" / "Harness").glob("logs-*/itr-1/worker-0")
    return process.returncode, output, load_run(logs)


def find_processes(checkout):
    """Return the processes that have the checkout in their command line."""
    return [pid for pid, command in process_files("cmdline").items() if str(checkout).encode() in command]


def test_a_run_ends_with_a_table_of_its_logs_and_uses_the_quick_settings(checkout):
    code, output, result = run(checkout, "--options", f"--steps=20 {step_of(2)}")
    assert code == 0, output
    assert output.index("Throughput") < output.index("logs:")
    assert "precision" not in output[output.index("Throughput") :]
    quick = load_sections(WORKLOAD / DEFAULTS)["*"]
    assert {name: result.effective[name] for name in quick} == quick


def test_where_the_time_went_is_told_when_asked_for(checkout):
    options = ("--options", f"--steps=20 {step_of(2)}")
    code, output, _ = run(checkout, "--timings", *options, CNNBENCH_SETUP_S="3")
    assert code == 0, output
    parts = re.findall(r"^(\w[\w ]*\w) +(\d+\.\d)$", output, re.MULTILINE)
    noted = ["set up", "configure", "stage", "run the cases", "write the page", "together"]
    assert [what for what, _ in parts] == noted
    seconds = [float(number) for _, number in parts]
    assert seconds[0] == 3
    assert seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=0.3)
    header, case = read_tables(output)[-1]
    assert header == ["case", "seconds", "loading", "measuring"]
    assert case[0] == "throughput avx_fp32"
    assert 0 < float(case[3]) <= float(case[1]) < seconds[3] + 1.1  # a run began in the second that its record tells


def test_a_time_of_setting_up_that_is_none_is_refused(checkout):
    with start(checkout, "--timings", CNNBENCH_SETUP_S="soon") as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "CNNBENCH_SETUP_S=soon: needed whole seconds" in output


def test_what_a_user_sets_is_stronger_than_the_quick_settings(checkout, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text("'*': {DATA_TYPE: dummy, STEPS: 20}")
    code, output, result = run(checkout, "--config", str(config), "--options", step_of(2), MAX_TIME="3")
    assert code == 0, output
    found = {name: result.effective[name] for name in ("DATA_TYPE", "STEPS", "MIN_TIME", "MAX_TIME")}
    assert found == {"DATA_TYPE": "dummy", "STEPS": "20", "MIN_TIME": "3", "MAX_TIME": "3"}


def quick(checkout, *arguments, **environment):
    with start(checkout, *arguments, choice=(), MIN_TIME="0.2", MAX_TIME="0.4", **environment) as process:
        output, _ = process.communicate(timeout=4 * PATIENCE_S)
    return process.returncode, output


def measured(checkout):
    return {
        path.parts[-3].removeprefix("logs-") for path in checkout.glob("build/workload/Harness/logs-*/itr-1/worker-0")
    }


TENSORFLOW = find_engine("tensorflow")
HERE = [name for name in KNOWN if not missing_for_precision(PRECISIONS[name], read_cpuinfo().flags)]


def test_every_precision_that_can_run_has_a_row_and_every_other_a_reason(every_precision, tmp_path):
    fastest = HERE[-1]
    config = tmp_path / "my.yaml"
    config.write_text(f"'*': {{CUSTOMER_ENV: {STEP_TIME}=20}}\n'*_{fastest}*': {{CUSTOMER_ENV: {STEP_TIME}=2}}\n")
    code, output = quick(every_precision, "--config", str(config))
    assert code == 0, output
    throughput = {f"test_{SLUG}_inference_throughput_{precision}_pkm" for precision in HERE}
    assert f"\npage: {every_precision / 'build' / 'workload' / 'Harness' / 'report.html'}" in output
    assert (every_precision / "build" / "workload" / "Harness" / "report.html").is_file()
    assert measured(every_precision) == throughput | {f"test_{SLUG}_inference_latency_{fastest}"}
    table, _, rest = output[output.rindex("\nprecision  ") :].partition("\nlogs:")
    assert [found for found in re.findall(r"^(\w+)  ", table, re.MULTILINE) if found in PRECISIONS] == HERE
    for name in KNOWN:
        reasons = missing_for_precision(PRECISIONS[name], read_cpuinfo().flags)
        assert [f"not run: {reason}" for reason in reasons] == [
            line for line in rest.splitlines() if line.startswith(f"not run: {name}:")
        ]


def test_a_sweep_lists_each_run(every_precision):
    code, output = quick(every_precision, "--set", "BATCH_SIZE=1 2", "--options", step_of(2))
    assert code == 0, output
    assert "\nprecision  " not in output
    header, *rows = read_table(output, -1)
    assert header[:3] == ["case", "settings", "KPI"]
    shown = [row[:3] for row in rows]
    for precision, size in itertools.product(HERE, (1, 2)):
        told = [f"throughput_{precision}_pkm", f"BATCH_SIZE={size}", "Throughput (img/s)"]
        assert shown.count(told) == 1, output


def test_a_run_of_another_call_meanwhile_is_not_in_the_table(checkout):
    build = checkout / "build" / "workload" / "Harness"
    with start(checkout, "--options", f"--steps=1000 {step_of(5)}") as process:
        wait_until(lambda: list(build.glob("status/case-*.json")), "the case")
        words = ("--workload", checkout / "workload" / "Harness", "--case", THROUGHPUT, "--logs-root", build)
        command = [sys.executable, "-m", "cnnbench", "case", *words, "--steps=20", step_of(2)]
        subprocess.run(command, env=clean_environment(), check=True, capture_output=True)
        assert process.poll() is None
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert len(list(build.glob("logs-*/itr-*/worker-0/run.json"))) == 2
    table, _, logs = output[output.rindex("\ncase") :].partition("\nlogs:")
    assert len(read_table(table, -1)) == 2, output
    assert logs.count("/worker-0") == 1


def test_a_case_that_fails_leaves_the_others_rows(every_precision, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(f"'*_{HERE[0]}_pkm': {{CORES_PER_INSTANCE: 4096}}")
    code, output = quick(every_precision, "--config", str(config), "--options", step_of(2))
    assert code == 8, output
    assert "CORES_PER_INSTANCE=4096" in output
    table = output[output.rindex("\nprecision  ") :].partition("\nlogs:")[0] if HERE[1:] else ""
    assert [found for found in re.findall(r"^(\w+)  ", table, re.MULTILINE) if found in PRECISIONS] == HERE[1:]


def test_precisions_are_split_by_what_a_cpu_has():
    cases = itertools.product(("throughput", "latency"), ("avx_fp32", "amx_bfloat16"))
    declared = [TestCase(SLUG, mode, name) for mode, name in cases]
    runnable, lacking = _split_precisions(declared, CpuInfo(vendor=None, flags=frozenset({"avx2", "fma"})), TENSORFLOW)
    assert runnable == ["avx_fp32"]
    assert len(lacking) == 1
    assert lacking[0].startswith("amx_bfloat16: ")


def test_a_cpu_without_any_precision_is_told_what_it_lacks():
    cpu = CpuInfo(vendor=None, flags=frozenset({"avx"}))
    with pytest.raises(SkippedError, match=r"(?s)no precision of this platform can run here:.*lacks avx2 and fma"):
        _split_precisions([TestCase(SLUG, "throughput", "avx_fp32")], cpu, TENSORFLOW)


def test_int8_is_not_run_with_a_python_that_cannot_quantise(unsupported_python):
    declared = [TestCase(SLUG, "throughput", name) for name in ("avx_int8", "avx_fp32")]
    cpu = CpuInfo(vendor=None, flags=frozenset({"avx2", "fma", "avx_vnni"}))
    runnable, (reason,) = _split_precisions(declared, cpu, TENSORFLOW)
    assert runnable == ["avx_fp32"]
    assert reason.startswith("avx_int8: quantising a model to int8 needs TensorFlow 2.15")
    runnable, lacking = _split_precisions(declared, cpu, find_engine("null"))
    assert (runnable, lacking) == (["avx_int8", "avx_fp32"], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_leaves_no_process_and_records_the_run(checkout, number):
    with start(checkout, "--options", f"--steps=1000000 {step_of(5)}") as process:
        wait_until(lambda: find_workers(checkout), "a worker")
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    if number == signal.SIGKILL:  # nobody has waited for what ends with it
        wait_until(lambda: not find_processes(checkout), "the end of the case")
    assert find_processes(checkout) == []
    (logs,) = (checkout / "build" / "workload" / "Harness").glob("logs-*/itr-1/worker-0")
    assert load_run(logs).verdict == "invalid"


def test_a_build_directory_of_containers_is_configured_anew(checkout):
    with (checkout / "workload" / "Harness" / "workload.yaml").open("a") as declaration:
        declaration.write("images: {parts: harness, inference: harness}\n")
    done = run_cmake(checkout / "build", Path(sys.executable), "-DBACKEND=docker", source=checkout)
    assert done.returncode == 0, done.stderr
    code, output, _ = run(checkout, "--set", "MIN_TIME=0.2/MAX_TIME=0.4")
    assert code == 0, output
    assert "BACKEND:STRING=native" in (checkout / "build" / "CMakeCache.txt").read_text()


def test_a_bad_set_is_bad_usage(checkout):
    with start(checkout, "--set", "BATCH_SIZE=0") as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "BATCH_SIZE=0 (--set): must be 1 to 4096" in output


def test_a_choice_of_no_case_is_bad_usage_and_nothing_is_staged_for_it(checkout):
    for choice, needed in {"typo": "-R typo: selects none of the 1 cases", "[": "-R [: no regular expression"}.items():
        with start(checkout, choice=("-R", choice)) as process:
            output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2, output
        assert needed in output
    assert not (checkout / "cache").exists()


def write_tool(path, text="exit 0"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_tool_that_setup_installed_goes_before_the_systems(tmp_path, monkeypatch):
    system = write_tool(tmp_path / "usr" / "cmake")
    monkeypatch.setenv("PATH", str(system.parent))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    assert find_tool("cmake") == str(system)
    installed = write_tool(tmp_path / "venv" / "cmake")
    assert find_tool("cmake") == str(installed)
    with pytest.raises(CnnbenchError, match=r"ctest: not found; script/setup\.sh installs it"):
        find_tool("ctest")


@pytest.mark.parametrize(
    ("version", "tools", "installs"),
    [
        ("3.25.1", ["cmake", "ctest"], False),
        ("3.19.8", ["cmake", "ctest"], True),
        ("3.25.1", ["cmake"], True),
        ("3.25.1", ["ctest"], True),
        ("3.25.1", [], True),
    ],
)
def test_setup_installs_cmake_where_the_system_lacks_any_of_it(tmp_path, version, tools, installs):
    root, system = tmp_path / "root", tmp_path / "bin"
    system.mkdir()
    for name in ("bash", "env", "dirname", "flock", "cmp", "cp"):
        (system / name).symlink_to(shutil.which(name))
    for name in tools:
        write_tool(system / name, f"echo {name} version {version}")
    locks = [f"requirements/{name}.lock" for name in ("installer", "controller", "cmake")]
    for name in ("script/setup.sh", *locks, "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    write_tool(root / ".venv" / "bin" / "python", f'[ "$1" = -c ] && echo True; echo "$@" >>"{tmp_path}/calls"')
    subprocess.run([root / "script" / "setup.sh"], env={**os.environ, "PATH": str(system)}, check=True)
    assert ("cnnbench.staging.installer --here cmake" in Path(tmp_path / "calls").read_text()) is installs
