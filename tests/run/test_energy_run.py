"""Runs of the null engine whose energy is read: counters that a real process moves on, and real meters."""

import signal
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from cnnbench.cases.parameters import FIELDS
from cnnbench.cli.main import main
from cnnbench.machine.energy import find_zones
from cnnbench.results.differences import list_differences
from cnnbench.results.record import load_run
from cnnbench.run.judging import judge_run
from cnnbench.run.record import Outside, read_seen, write_outside
from null_workload import CORES, NullWorkload, process_files, step_of, wait_until
from sysfs import make_powercap_tree

ZONES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "dram",
}
RANGE_J = 65_700
BUSY_W = {"intel-rapl:0": 100, "intel-rapl:0:0": 10, "intel-rapl:1": 50, "intel-rapl:1:0": 5}
IDLE_SHARE = 0.4

FEEDER = """
import os, pathlib, sys, time
root, logs, range_uj, share = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
watts = dict(word.split("=") for word in sys.argv[5:])
zones = {next(path for path in root.rglob(zone) if path.is_dir()): float(power) for zone, power in watts.items()}
used_uj = {zone: range_uj - 150e6 for zone in zones}  # so that the first runs over while measuring
last_s = time.monotonic()
while True:
    now_s = time.monotonic()
    busy = 1 if list(logs.glob("*/*/*/process-0")) else share
    for zone, power in zones.items():
        used_uj[zone] += busy * power * (now_s - last_s) * 1e6
        (zone / "partial").write_text(f"{int(used_uj[zone]) % range_uj}\\n")
        os.replace(zone / "partial", zone / "energy_uj")
    last_s = now_s
    time.sleep(0.005)
"""


@pytest.fixture
def case(monkeypatch, capsys):
    """Run a case inside this process, where what it reads can be changed; return its code and what it printed."""
    for name in FIELDS:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(workload, *arguments):
        code = main(workload.command(*arguments, step_of(5), "--cores_per_instance=1")[3:])
        return code, capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def fed(tmp_path, monkeypatch):
    """A workload on a machine whose counters of energy move on."""
    workload = NullWorkload(tmp_path)
    tree = make_powercap_tree(tmp_path / "powercap", ZONES, RANGE_J * 10**6)
    monkeypatch.setattr("cnnbench.run.energy.find_zones", lambda: find_zones(tree))
    words = [sys.executable, "-c", FEEDER, tree, workload.logs_root, str(RANGE_J * 10**6), str(IDLE_SHARE)]
    with subprocess.Popen([*words, *(f"{zone}={power}" for zone, power in BUSY_W.items())]) as feeder:
        wait_until(lambda: "1000000" not in (tree / "intel-rapl:0" / "energy_uj").read_text(), "the first energy")
        workload.tree = tree
        yield workload
        feeder.kill()


def kpis_of(run):
    return {f"{kpi.key} ({kpi.unit})": kpi.value for kpi in run.kpis}


def test_energy_comes_out_as_it_was_fed_over_the_common_window(fed, case):
    code, printed = case(fed, "--steps=600", "--idle_time=1", "--batch_size=4")
    assert code == 0, printed.err
    run = load_run(fed.logs())
    kpis, rate, busy_w = kpis_of(run), kpis_of(run)["Throughput (img/s)"], sum(BUSY_W.values())
    # A feeder that waits for a core writes late; what it writes idle is 0.4 of what it writes busy.
    assert kpis["Power (W)"] == pytest.approx(busy_w, rel=0.25)
    assert kpis["Idle power (W)"] == pytest.approx(IDLE_SHARE * busy_w, rel=0.25)
    assert kpis["Power above idle (W)"] == pytest.approx(kpis["Power (W)"] - kpis["Idle power (W)"])
    assert kpis["Energy per image (J/image)"] == pytest.approx(kpis["Power (W)"] / rate)
    assert kpis["Efficiency (img/s/W)"] == pytest.approx(rate / kpis["Power (W)"])
    assert run.facts["energy"] == "of package 0, DRAM 0, package 1, DRAM 1"
    told = {name: float(text.split()[0]) for name, text in run.facts.items() if name.startswith("power of ")}
    assert told == {
        f"power of {name}": pytest.approx(power, rel=0.25)
        for name, power in zip(("package 0", "DRAM 0", "package 1", "DRAM 1"), BUSY_W.values(), strict=True)
    }
    energy = read_seen(fed.logs()).energy
    assert min(energy.series[0].values) < 10**10 < max(energy.series[0].values)  # it ran over
    assert not list_differences(run, judge_run(fed.logs()))
    assert "Efficiency (img/s/W): " in printed.out

    # As of a container, whose host has read it: the same comes out.
    seen = fed.logs() / "seen.jsonl"
    seen.write_text("".join(line for line in seen.read_text().splitlines(keepends=True) if '"energy"' not in line))
    assert "Power (W)" not in kpis_of(judge_run(fed.logs()))
    write_outside(fed.logs(), Outside(energy=energy))
    assert kpis_of(judge_run(fed.logs())) == kpis


@pytest.mark.skipif(CORES < 2, reason="one physical core: it is the whole machine")
def test_a_part_of_a_processor_is_told_to_be_one_and_what_fails_leaves_no_power(fed, case):
    (fed.tree / "intel-rapl:1" / "name").write_text("package-9\n")
    code, printed = case(fed, "--steps=20", "--idle_time=0", "--instances=1")
    assert code == 0, printed.err
    run = load_run(fed.logs())
    assert f"of whole processors, of whose {CORES} cores 1 were measured" in " ".join(run.notes)
    assert "Idle power (W)" not in kpis_of(run)
    assert "Power (W)" in kpis_of(run)
    assert "power of package 9" in run.facts

    seen = fed.logs() / "seen.jsonl"
    energy = read_seen(fed.logs()).energy
    broken = replace(energy.series[2], failure="it vanished")
    line = energy.model_copy(update={"series": (*energy.series[:2], broken, energy.series[3])}).model_dump_json()
    lines = [line if '"energy"' in one else one for one in seen.read_text().splitlines()]
    seen.write_text("\n".join(lines) + "\n")
    run = judge_run(fed.logs())
    assert run.verdict != "invalid"
    assert not {"Power (W)", "Energy per image (J/image)"} & set(kpis_of(run))
    assert "power and energy are not told: package 9: it vanished" in run.notes
    assert "power of package 0" in run.facts


def write_meter(directory, script):
    """Write a meter and return it: a program of the shell's."""
    meter = directory / "meter"
    meter.write_text(f"#!/bin/bash\n{script}\n")
    meter.chmod(meter.stat().st_mode | stat.S_IXUSR)
    return meter


NOW = "$(date +%s.%N)"
JOULES = """
while sleep 0.05; do
    now=$(date +%s.%N)
    awk -v now=$now 'BEGIN { printf "%s %.6f J\\n", now, 70 * (now - 1.7e9) }'
done
"""


def test_a_meter_of_ones_own_counts_in_place_of_the_counters(fed, case, tmp_path):
    meter = write_meter(tmp_path, JOULES)
    code, printed = case(fed, "--steps=400", "--idle_time=0.3", f"--energy_meter={meter}")
    assert code == 0, printed.err
    run = load_run(fed.logs())
    assert kpis_of(run)["Power (W)"] == pytest.approx(70, rel=0.05)
    assert kpis_of(run)["Idle power (W)"] == pytest.approx(70, rel=0.05)
    assert run.facts["energy"] == f"of what the meter reads: {meter}"
    assert float(run.facts["power of package 0"].split()[0]) == pytest.approx(100, rel=0.25)
    assert not any("whole processors" in note for note in run.notes)
    assert run.effective["ENERGY_METER"] == str(meter)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 1000", "it gave no reading for 1 s"),
        (
            "trap '' TERM; while sleep 0.01; do echo no meter here; done",
            "it printed 'no meter here'; needed lines of `TIME VALUE UNIT`",
        ),
        (f'while sleep 0.01; do echo "{NOW} -3 W"; done', "-3 W', which is below 0"),
        (f'echo "{NOW} 5 W"; echo it broke >&2; exit 3', "it ended with exit code 3, before the run did; what it said"),
        ("echo '1700000000 5 W'; sleep 1000", "s off this machine's: it printed '1700000000 5 W'"),
        (f'echo "{NOW} 5 W"; sleep 1000', "it gave no reading for 1 s"),
        (f'echo "{NOW} 5 W"; while sleep 0.01; do echo "{NOW} 5 J"; done', "5 J' after readings in W"),
        ('now=$(date +%s.%N); echo "$now 5 W"; echo "$now 6 W"; sleep 1000', "its time went back: it printed"),
        (f'at=999; while sleep 0.01; do echo "{NOW} $((at -= 1)) J"; done', "its counter went back from "),
        ("exec 1>&-; sleep 1000", "it gave no reading for 1 s"),
    ],
)
def test_a_bad_meter_leaves_a_good_run_without_energy_and_the_reason(case, tmp_path, monkeypatch, script, reason):
    for module in ("machine.meter", "run.energy_seen"):
        monkeypatch.setattr(f"cnnbench.{module}.PATIENCE_S", 1.0)
    monkeypatch.setattr("cnnbench.machine.meter.EXIT_S", 0.2)
    workload, meter = NullWorkload(tmp_path), write_meter(tmp_path, script)
    code, printed = case(workload, "--steps=20", "--idle_time=0.1", f"--energy_meter={meter}", "--instances=1")
    assert code == 0, printed.err
    run = load_run(workload.logs())
    assert not {"Power (W)", "Idle power (W)", "Efficiency (img/s/W)"} & set(kpis_of(run))
    (note,) = [note for note in run.notes if note.startswith("power and energy are not told: meter: ")]
    assert reason in note
    assert f"# note: {note}" in printed.out
    assert "Throughput (img/s)" in kpis_of(run)
    assert not [pid for pid, words in process_files("cmdline").items() if str(meter).encode() in words]


def test_a_meter_that_cannot_be_started_says_so(case, tmp_path):
    workload, meter = NullWorkload(tmp_path), write_meter(tmp_path, "")
    meter.write_text("#!/no/such/interpreter\n")
    code, printed = case(workload, "--steps=20", f"--energy_meter={meter}", "--instances=1")
    assert code == 0, printed.err
    assert "not told: meter: it cannot be started: No such file or directory" in printed.out


def test_a_machine_whose_energy_cannot_be_read_says_why_once(case, tmp_path, monkeypatch):
    monkeypatch.setattr("cnnbench.run.energy.find_zones", lambda: find_zones(tmp_path / "powercap"))
    workload = NullWorkload(tmp_path)
    code, printed = case(workload, "--steps=20", "--instances=1")
    assert code == 0, printed.err
    assert printed.out.count("# energy: not measured: ") == 1
    assert not any("energy" in note for note in load_run(workload.logs()).notes)
    assert read_seen(workload.logs()).energy is None
