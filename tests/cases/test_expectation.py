"""What is expected of a platform: the files of this repository, and what is wrong with others."""

import pytest

from checkout import WORKLOAD
from cnnbench.base.errors import UsageError
from cnnbench.cases.expectation import load_expectations, read_expectations
from null_workload import THROUGHPUT, NullWorkload

GOOD = {"case": THROUGHPUT, "value": 100, "low": 90, "high": 110, "unit": "img/s", "source": "a document"}


def write_file(tmp_path, text):
    path = NullWorkload(tmp_path).directory / "expect" / "SPR.yaml"
    path.parent.mkdir()
    path.write_text(text)
    return path


def entry(**changed):
    return "- " + ", ".join(f"{name}: {value}" for name, value in (GOOD | changed).items()).join("{}") + "\n"


def test_the_documents_four_figures_are_expected_of_spr_as_published_and_per_core():
    found = load_expectations(WORKLOAD, "SPR")
    assert [one.value for one in found] == [13460, 7462, 5514, 1451]
    assert [one.parameters["BATCH_SIZE"] for one in found] == ["64", "32", "32", "128"]
    assert all(one.published and one.per == "core" and one.low < one.value < one.high for one in found)
    assert found[0].scaled(cores=112, sockets=2) == (13460, 12114, 14806)
    assert [round(one.scaled(cores=1, sockets=1)[0], 1) for one in found] == [120.2, 66.6, 49.2, 13.0]


def test_a_platform_without_a_file_has_no_expectation():
    assert load_expectations(WORKLOAD, "GENERIC") is None


def test_a_figure_counts_by_what_it_is_per(tmp_path):
    machine = "{name: other, sockets: 2, cores: 16}"
    text = entry(per="socket", machine=machine) + entry(parameters="{BATCH_SIZE: 8}")
    per_socket, whole = read_expectations(write_file(tmp_path, text))
    assert per_socket.scaled(cores=4, sockets=1) == (50, 45, 55)
    assert whole.scaled(cores=4, sockets=1) == (100, 90, 110)
    assert whole.parameters == {"BATCH_SIZE": "8"}


BAD = {
    "not yaml": ("- {", "not yaml"),
    "a mapping": ("case: a", "must be a list of expectations"),
    "nothing": ("", "must be a list of expectations"),
    "a text": ("- SPR", "entry 1: must be a mapping"),
    "an unknown key": (entry(hihg=3), "entry 1, hihg: Extra inputs are not permitted"),
    "a missing key": ("- {case: x}", "entry 1, value: Field required"),
    "no number": (entry(value="fast"), "entry 1, value: Input should be a valid number"),
    "zero": (entry(low=0), "entry 1, low: Input should be greater than 0"),
    "an unknown case": (entry(case="test_other"), "entry 1: test_other: not a test case of this workload"),
    "an unknown parameter": (entry(parameters="{BATCH: 1}"), "entry 1: BATCH: no such parameter"),
    "the wrong order": (entry(low=101), "low 101, value 100, high 110: must be in this order"),
    "no machine": (entry(per="core"), "per core: needs `machine`"),
    "fewer cores than sockets": (
        entry(per="core", machine="{name: a, sockets: 2, cores: 1}"),
        "entry 1, machine: Value error, cores: 1 on 2 sockets",
    ),
    "one twice": (entry() + entry(value=95), "entry 2: .* is there already"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_refused_with_the_entry_and_the_reason(tmp_path, what):
    text, complaint = BAD[what]
    with pytest.raises(UsageError, match=f"SPR.yaml: .*{complaint}"):
        read_expectations(write_file(tmp_path, text))
