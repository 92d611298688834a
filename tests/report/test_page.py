"""`cnnbench report`: the one page about runs, read as the file that it is."""

import json
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from cnnbench.cli.main import main
from cnnbench.report.page.charts import load_altair
from cnnbench.report.page.speed import choose_named, find_front
from cnnbench.results.record import Kpi
from page_runs import KILLED, UNSTEADY, read_charts, write_run

needs_altair = pytest.mark.skipif(load_altair() is None, reason="no Altair here: script/setup.sh report installs it")
HOSTILE = "</script><img src=x onerror=alert(1)><!-- \"'&"

PEAKS = (
    Kpi(key="Throughput", unit="img/s", value=90, primary=True),
    Kpi(key="Achieved", unit="GFLOP/s", value=5),
    Kpi(key="Peak", unit="GFLOP/s", value=9),
    Kpi(key="Memory bandwidth", unit="GB/s", value=3),
)


class Reader(HTMLParser):
    """Reads a page: its elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self._inside = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self):
        return [attributes["id"] for tag, attributes in self.elements if tag == "section" and "id" in attributes]


@pytest.fixture
def report(tmp_path, capsys):
    """Run the command; return its exit code, the page (None without one) and what it said."""

    def run(*directories, options=()):
        output = tmp_path / "page.html"
        output.unlink(missing_ok=True)
        code = main(["report", "-o", str(output), *map(str, options), *map(str, directories)])
        page = output.read_text(encoding="utf-8") if output.exists() else None
        return code, page, "".join(capsys.readouterr())

    return run


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


def test_a_page_has_every_section_that_there_are_data_for_and_no_other(report, logs):
    write_run(logs, instances=1, started="2025-01-01T00:00:00Z", rate=50)
    write_run(logs, instances=4, started="2025-01-01T00:00:01Z", rate=180)
    code, page, said = report(*logs.glob("logs-*"))
    assert (code, "2 runs" in said) == (0, True)
    few = ["summary", "speed", "latency", "steps", "scaling", "places", "origins"]
    assert Reader(page).sections == few
    write_run(logs, kpis=PEAKS, trace="itex-int8-vnni.log")
    write_run(logs, mode="accuracy", rate=76.0, raw=False)
    write_run(logs, workload="CNN-Triton-Public", mode="capacity", trials=((10.0, 5.0, True), (20.0, 50.0, False)),
              LATENCY_BOUND_MS="15")  # fmt: skip
    write_run(logs, workload="ResNet50-Compiled-Public", network="resnet50")
    _, page, _ = report(*logs.glob("logs-*"))
    assert Reader(page).sections == [
        *few[:-1], "accuracy", "roofline", "layers", "serving", "published", "origins",
    ]  # fmt: skip


def test_every_number_has_its_verdict_and_an_invalid_run_has_none(report, logs):
    write_run(logs, rate=111, started="2025-01-01T00:00:00Z")
    write_run(logs, rate=222, started="2025-01-01T00:00:01Z", criteria=(UNSTEADY,))
    write_run(logs, rate=77777, started="2025-01-01T00:00:02Z", criteria=(KILLED,))
    _, page, _ = report(*logs.glob("logs-*"))
    rows = re.findall(r'<tr id="run-.*?</tr>', page, re.DOTALL)
    shown = [[re.search(pattern, row) is not None for pattern in ("111", "222", "77777")] for row in rows]
    assert shown == [[True, False, False], [False, True, False], [False, False, False]]
    assert [re.search('data-verdict="(.*?)"', row)[1] for row in rows] == ["valid", "unstable", "invalid"]
    for row, verdict in zip(rows[:2], ("valid", "unstable"), strict=True):
        numbers = re.findall(r'<td class="number">.*?(?:111|222|10\.00).*?</td>', row)
        assert len(numbers) == 2
        assert all(f'<span class="badge {verdict}"' in number for number in numbers)
    assert "spread: 22 %, needed at most 10 %" in rows[1]
    assert "some were killed" in rows[2]
    assert "77777" not in page


@needs_altair
def test_a_page_asks_for_nothing_and_runs_no_script_but_its_own(report, logs):
    write_run(logs)
    _, page, _ = report(*logs.glob("logs-*"))
    elements = Reader(page).elements
    (policy,) = [a["content"] for tag, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    targets = [a[name] for _, a in elements for name in ("src", "href", "action", "data") if a.get(name)]
    assert [target for target in targets if not target.startswith(("#", "data:,"))] == []
    assert "@import" not in page.partition("<script")[0]
    assert len(page.encode()) < 3_000_000


def test_texts_of_runs_are_texts_whatever_is_in_them(report, logs):
    write_run(logs, name=f"x{HOSTILE.replace('/', '')}\n", CUSTOMER_ENV=HOSTILE, facts={HOSTILE: HOSTILE},
              engine=HOSTILE, criteria=(UNSTEADY.model_copy(update={"found": HOSTILE}),))  # fmt: skip
    worker = write_run(logs, name="y")
    raw = os.fsencode(worker.parents[1]) + b"\xff\xfe"
    worker.parents[1].rename(os.fsdecode(raw))
    code, page, _ = report(*logs.iterdir())
    assert code == 0
    elements = Reader(page).elements
    assert [tag for tag, _ in elements if tag in ("img", "iframe", "object", "embed")] == []
    assert [a for _, a in elements for name in a if name.startswith("on")] == []
    assert HOSTILE in Reader(page).text
    assert "<!--" not in page.replace(HOSTILE, "").partition("<script")[0]
    if load_altair():
        charts = read_charts(page)  # what stands in a script is whole JSON
        assert HOSTILE in json.dumps(charts).encode().decode("unicode_escape").replace('\\"', '"')


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(report, logs, tmp_path):
    good = write_run(logs, name="good")
    cut, other, strange = (write_run(logs, name=name) for name in ("cut", "other", "strange"))
    (cut / "run.json").write_bytes((cut / "run.json").read_bytes()[:100])
    content = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(content | {"schema_version": 2}))
    (strange / "run.json").write_bytes(b"\xff\x00[")
    (logs / "logs-empty").mkdir()
    (logs / "logs-file").write_text("no directory")
    (logs / "logs-loop").symlink_to("logs-loop")
    code, page, said = report(*sorted(logs.glob("logs-*")), logs / "logs-none")
    assert code == 1
    text = Reader(page).text
    for name in ("logs-cut", "logs-other", "logs-strange", "logs-empty", "logs-file", "logs-loop", "logs-none"):
        assert f"{logs / name}" in said, name
        assert f"{logs / name}" in text, name
    assert "run-1" in page
    assert 'id="run-2"' not in page
    assert good.exists()


def test_without_a_run_there_is_no_page(report, logs):
    logs.mkdir()
    code, page, said = report(logs)
    assert (code, page) == (1, None)
    assert "no run to report on; needed logs directories" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("instance-0/steps.npy", b""),
        ("instance-0/steps.npy", b"\x93NUMPY\x01\x00v\x00{'descr'"),
        ("seen.jsonl", b'{"event": "party"}\n'),
        ("record.json", b"{"),
        ("trace/spec.json", b"[]"),
        ("trace/output.log", b"\xff" * 99),
        ("instance-0/samples.npz", b"PK\x03\x04"),
        ("instance-0/steps.npy", None),
    ],
)
def test_damaged_raw_files_cost_their_figures_alone(report, logs, name, content):
    write_run(logs, started="2025-01-01T00:00:00Z")
    worker = write_run(logs, started="2025-01-01T00:00:01Z", trace="itex-int8-vnni.log")
    if content is None:
        np.save(worker / name, np.full((5, 3), np.nan))
    else:
        (worker / name).write_bytes(content)
    code, page, _ = report(*logs.glob("logs-*"))
    assert code == 0
    assert {"summary", "speed", "latency", "steps"} <= set(Reader(page).sections)


def test_a_run_without_raw_files_is_in_the_summary_and_the_page_says_what_it_lacks(report, logs):
    write_run(logs, raw=False)
    _, page, _ = report(*logs.glob("logs-*"))
    assert Reader(page).sections == ["summary", "speed", "places", "origins"]
    assert "no record.json there" in Reader(page).text


@needs_altair
def test_a_thousand_runs_are_a_page_of_less_than_3_mb(report, logs):
    facts = {f"fact {number}": "x" * 60 for number in range(20)}
    for number in range(1002):
        started = f"2025-01-01T{number // 60:02}:{number % 60:02}:00Z"
        own = facts | {"load average before": str(number)}
        write_run(logs, started=started, rate=number + 1, batch=1 + number % 8, facts=own, criteria=(UNSTEADY,),
                  raw=number > 990, steps=3000)  # fmt: skip
    _, page, _ = report(*logs.glob("logs-*"))
    assert len(page.encode()) < 3_000_000
    assert "the 2 oldest are left out" in page
    assert page.count('<tr id="run-') == 1000
    assert "newest" in page
    charts = read_charts(page)
    assert max(len(re.findall('"run"', json.dumps(chart))) for chart in charts.values()) < 2500


def test_the_command_is_the_case_with_what_was_asked_for(report, logs):
    write_run(logs, batch=32, CUSTOMER_ENV="A='1 2'")
    _, page, _ = report(*logs.glob("logs-*"))
    (command,) = re.findall("<pre[^>]*><code>(.*?)</code>", page)
    case = "test_cnn_pytorch_public_inference_throughput_avx_fp32_resnet18"
    assert command.startswith(f"cnnbench case --workload workload/CNN-PyTorch-Public --case {case} --logs-root .")
    assert "--batch_size=32" in command
    assert "--engine=onnxruntime" in command
    assert "cores_per_instance" not in command  # it is what the case has by itself
    assert "customer_env=A=" in command


def test_without_altair_the_page_has_the_tables_and_says_so(report, logs, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    write_run(logs)
    code, page, said = report(*logs.glob("logs-*"))
    assert code == 0
    assert "script/setup.sh report" in said
    assert "script/setup.sh report" in Reader(page).text
    assert "window.vegaEmbed=" not in page
    assert "Percentiles of the time of a step" in page
    assert 'class="chart"' not in page
    code, _, said = report(*logs.glob("logs-*"), options=["--pictures", logs / "pictures"])
    assert code == 2
    assert "--pictures: needs Altair and vl-convert: run script/setup.sh report" in said


@needs_altair
def test_pictures_are_written_of_each_chart(report, logs, tmp_path):
    write_run(logs)
    code, page, said = report(*logs.glob("logs-*"), options=["--pictures", tmp_path / "pictures"])
    assert code == 0
    names = {
        f"{name}{theme}.{kind}" for name in read_charts(page) for theme in ("", "-dark") for kind in ("svg", "png")
    }
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names
    assert f"wrote {len(names)} pictures" in said
    drawn = (tmp_path / "pictures" / "throughput-latency.svg").read_text()
    assert "<svg" in drawn
    assert "var(--" not in drawn


def test_list_kpi_prints_the_same_page(logs, capsys):
    write_run(logs)
    directories = list(map(str, logs.glob("logs-*")))
    assert main(["list-kpi", "--format", "html", *directories]) == 0
    assert Reader(capsys.readouterr().out).sections[0] == "summary"
    assert main(["list-kpi", "--format", "html", "--all", *directories]) == 2
    assert "leave out --primary, --all and --params" in capsys.readouterr().err


def test_an_output_that_cannot_be_is_refused(report, logs, capsys):
    write_run(logs)
    for output in (logs, logs / "none" / "/proc/x/page.html"):
        assert main(["report", "-o", str(output), *map(str, logs.glob("logs-*"))]) == 2
        assert f"--output {output}" in capsys.readouterr().err


@needs_altair
def test_percentiles_are_of_all_samples_and_only_with_enough_of_them(report, logs):
    write_run(logs, instances=2, steps=70)
    _, page, _ = report(*logs.glob("logs-*"))
    text = Reader(page).text
    assert "needs 662, has 13" in text  # two instances of 70 steps, less what lies outside the window
    curve = [row for chart in [read_charts(page)["latency-distribution"]] for row in _values(chart)]
    assert max(row["percentile"] for row in curve) <= 95
    assert {row["ms"] for row in curve} <= {10.0, 11.0}


@needs_altair
def test_a_straggler_is_marked_and_so_are_its_socket_and_cache(report, logs):
    write_run(logs, instances=4)
    _, page, _ = report(*logs.glob("logs-*"))
    values = _values(read_charts(page)["instances-1"])
    assert [row["straggler"] for row in values] == ["", "", "", "straggler"]
    assert [row["series"] for row in values] == [
        f"socket {at // 2}, node {at // 2}, cache {at}" for at in range(4)
    ]  # fmt: skip


def test_the_front_is_what_no_other_run_is_as_good_as():
    points = [(10, 100), (5, 50), (5, 60), (20, 90), (20, 120), (1, 1)]  # latency, throughput
    assert find_front(points) == {0, 2, 4, 5}
    assert find_front([]) == set()


def test_names_stand_where_there_is_room_and_the_front_has_it_first():
    points = [(1.0, 100.0), (1.01, 101.0), (1.02, 102.0), (10.0, 1000.0)]
    assert choose_named(points, {1}) == {1, 3}
    assert choose_named(points, {3}) == {0, 3}
    assert choose_named([(5.0, 5.0)] * 3, set()) == {0}
    assert choose_named([], set()) == set()


def _values(chart):
    found = []

    def look(node):
        if isinstance(node, dict):
            if node.get("name") == "values":
                found.append(node["values"])
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(chart)
    return found[0]


@needs_altair
def test_machines_stand_side_by_side_where_there_are_several(report, logs):
    energy = Kpi(key="Energy", unit="J/image", value=2.5)
    for second, (host, rate, instances) in enumerate([("alpha", 100, 2), ("beta", 140, 4), ("beta", 144, 4)]):
        write_run(
            logs,
            instances=instances,
            started=f"2025-01-01T00:00:0{second}Z",
            facts={"host name": host, "CPU": f"CPU of {HOSTILE}{host}"},
            kpis=(Kpi(key="Throughput", unit="img/s", value=rate, primary=True), energy),
        )
    _, page, _ = report(*logs.glob("logs-*"))
    assert "platforms" in Reader(page).sections
    assert "img" not in [tag for tag, _ in Reader(page).elements]
    charts = {
        name: chart["data"]["values"] for name, chart in read_charts(page).items() if name.startswith("platforms")
    }
    assert {name: [one["value"] for one in values] for name, values in charts.items()} == {
        "platforms": [100, 142],
        "platforms-core": [50, 35.5],
        "platforms-socket": [100, 71],
        "platforms-energy": [2.5, 2.5],
    }
    assert "needs 3 runs of each at the least" in page
    _, page, _ = report(next(logs.glob("logs-*")) / "itr-1")
    assert "platforms" not in Reader(page).sections
