"""`--set` texts and the combinations they stand for."""

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.cases.sets import read_sweep


def values(text):
    name, _, rest = text.partition("=")
    return [combination[name] for combination in read_sweep([f"{name}={rest}"])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BATCH_SIZE=8", "8"),
        ("BATCH_SIZE=1 8 32", "1 8 32"),
        ("BATCH_SIZE=1 2 4 ...32", "1 2 4 8 16 32"),
        ("BATCH_SIZE=1 2 4 ... 32", "1 2 4 8 16 32"),
        ("BATCH_SIZE=3 9 27 ...243", "3 9 27 81 243"),
        ("BATCH_SIZE=1 3 5 ...9", "1 3 5 7 9"),
        ("BATCH_SIZE=2 4 ...10", "2 4 6 8 10"),
        ("BATCH_SIZE=16 12 ...4", "16 12 8 4"),
        ("BATCH_SIZE=1 2 3 ...3", "1 2 3"),
        ("CORES_PER_INSTANCE=auto 1 2", "auto 1 2"),
        ("MIN_TIME=0.5 1", "0.5 1"),
    ],
)
def test_values(text, expected):
    assert values(text) == expected.split()


def test_no_set_is_one_run_as_declared():
    assert read_sweep([]) == [{}]


def test_names_permute_with_the_first_changing_slowest():
    assert read_sweep(["BATCH_SIZE=1 8/CORES_PER_INSTANCE=1 2/STEPS=5"]) == [
        {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "1", "STEPS": "5"},
        {"BATCH_SIZE": "1", "CORES_PER_INSTANCE": "2", "STEPS": "5"},
        {"BATCH_SIZE": "8", "CORES_PER_INSTANCE": "1", "STEPS": "5"},
        {"BATCH_SIZE": "8", "CORES_PER_INSTANCE": "2", "STEPS": "5"},
    ]


def test_repeated_sets_zip_and_a_single_combination_goes_with_all():
    assert read_sweep(["BATCH_SIZE=1 8", "STEPS=100 20", "VARIANT=stock"]) == [
        {"BATCH_SIZE": "1", "STEPS": "100", "VARIANT": "stock"},
        {"BATCH_SIZE": "8", "STEPS": "20", "VARIANT": "stock"},
    ]


def test_permutations_zip_as_a_whole():
    combinations = read_sweep(["BATCH_SIZE=1 8/INSTANCES=1 2", "STEPS=1 2 3 4"])
    assert [(one["BATCH_SIZE"], one["INSTANCES"], one["STEPS"]) for one in combinations] == [
        ("1", "1", "1"),
        ("1", "2", "2"),
        ("8", "1", "3"),
        ("8", "2", "4"),
    ]


def test_text_parameters_are_one_value_and_paths_are_no_dimension():
    assert read_sweep(["CUSTOMER_ENV=A=/opt/x B='two words'/MODEL=/data/my models/graph.pb/BATCH_SIZE=1"]) == [
        {"CUSTOMER_ENV": "A=/opt/x B='two words'", "MODEL": "/data/my models/graph.pb", "BATCH_SIZE": "1"}
    ]


@pytest.mark.parametrize(
    ("texts", "needed"),
    [
        (["BATCH_SIZE"], "NAME=VALUE"),
        (["BATCH_SIZE="], "needs a value"),
        (["BATCH_SIZE=1/STEPS="], "STEPS= .*needs a value"),
        (["BATCH=1"], "BATCH: no such parameter; known are .*BATCH_SIZE"),
        (["MODE=latency throughput"], "choose cases with -R"),
        (["BATCH_SIZE=1/BATCH_SIZE=2"], "there twice"),
        (["BATCH_SIZE=1", "BATCH_SIZE=2"], "another --set"),
        (["BATCH_SIZE=1 2 3", "STEPS=1 2"], '3 of "BATCH_SIZE=1 2 3", 2 of "STEPS=1 2"'),
        (["BATCH_SIZE=1 2 4 ...30"], "30 is not in the series; the nearest terms are 16 and 32"),
        (["BATCH_SIZE=1 3 ...8"], "8 is not in the series; the nearest terms are 7 and 9"),
        (["BATCH_SIZE=1 2 5 ...32"], "neither linear .* nor geometric"),
        (["BATCH_SIZE=2 3 4.5 ...9"], "whole numbers"),
        (["BATCH_SIZE=4 4 ...4"], "neither linear"),
        (["BATCH_SIZE=0 0 0 ...4"], "neither linear"),
        (["BATCH_SIZE=32 16 8 ...1"], "neither linear"),
        (["BATCH_SIZE=1 ...8"], "needs 2 terms"),
        (["BATCH_SIZE=...8"], "needs 2 terms"),
        (["BATCH_SIZE=1 2 ..."], "whole numbers"),
        (["BATCH_SIZE=1 2 ...8 16"], "before the last value"),
        (["BATCH_SIZE=1 ...4 ...8"], "must stand once"),
        (["BATCH_SIZE=1 3 5 ...3"], "lies before 5"),
        (["STEPS=1 2 ...1000000"], "more than 10000 terms"),
        (["STEPS=1 2 ...5000/BATCH_SIZE=1 2 ...3"], "more than 10000 combinations"),
    ],
)
def test_malformed_texts_are_refused(texts, needed):
    with pytest.raises(UsageError, match=needed):
        read_sweep(texts)
