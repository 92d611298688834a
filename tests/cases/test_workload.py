"""workload.yaml and settings files: what they give a case, and what is wrong with a bad one."""

from dataclasses import replace

import pytest

from checkout import WORKLOAD
from cnnbench.base.errors import UsageError
from cnnbench.cases.case import TestCase, parse_arguments
from cnnbench.cases.variables import DEFAULTS_VARIABLE, DIRECTORY_VARIABLE
from cnnbench.cases.workload import Sources, load_sections, load_workload

GOOD = """
name: Tiny
slug: tiny
title: a tiny workload
engine: "null"
defaults:
  "*": {BATCH_SIZE: 2, WARMUP_STEPS: 3}
  "*_gated": {STEPS: 10, BATCH_SIZE: 1}
"""


@pytest.fixture
def make_workload(tmp_path):
    def write(text=GOOD):
        (tmp_path / "workload.yaml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def write_config(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def resolve_parameters(workload, case, environ, arguments, config=None):
    return Sources.read(workload, environ, config).resolve(case, {"argument": arguments})


def gated(workload):
    return TestCase(workload.slug, "throughput", "avx_fp32", "gated")


def plain(workload):
    return TestCase(workload.slug, "throughput", "avx_fp32")


def test_sections_go_by_the_globs_of_case_names_and_later_ones_win(make_workload):
    workload = load_workload(make_workload())
    parameters = resolve_parameters(workload, gated(workload), {}, {})
    assert (parameters.steps, parameters.batch_size, parameters.warmup_steps) == (10, 1, 3)
    parameters = resolve_parameters(workload, plain(workload), {}, {})
    assert (parameters.steps, parameters.batch_size, parameters.warmup_steps) == ("auto", 2, 3)


def test_table_workload_config_environment_argument_in_this_order(make_workload, write_config):
    workload = load_workload(make_workload())
    case = plain(workload)
    config = write_config("'*_throughput_*': {BATCH_SIZE: 4}")
    environment, arguments = {"BATCH_SIZE": "8"}, parse_arguments(["--batch_size=16"])
    assert resolve_parameters(workload, case, environment, arguments, config).batch_size == 16
    assert resolve_parameters(workload, case, environment, {}, config).batch_size == 8
    assert resolve_parameters(workload, case, {}, {}, config).batch_size == 4
    assert resolve_parameters(workload, case, {}, {}).batch_size == 2
    assert resolve_parameters(workload, case, {}, {}).min_time == 10


def test_the_quick_starts_file_is_weaker_than_whatever_a_user_gives(make_workload, write_config, tmp_path):
    workload = load_workload(make_workload())
    case = plain(workload)
    quick = tmp_path / "quick.yaml"
    quick.write_text("'*': {BATCH_SIZE: 3, DATA_TYPE: real, MIN_TIME: 5, MAX_TIME: 15}")
    environ = {DEFAULTS_VARIABLE: str(quick)}
    parameters = resolve_parameters(workload, case, environ, {})
    assert (parameters.batch_size, parameters.data_type) == (3, "real")
    assert (parameters.min_time, parameters.max_time) == (5, 15)
    config = write_config("'*': {BATCH_SIZE: 4, MAX_TIME: 30}")
    parameters = resolve_parameters(workload, case, environ, {}, config)
    assert (parameters.batch_size, parameters.min_time, parameters.max_time) == (4, 5, 30)
    assert resolve_parameters(workload, case, {**environ, "BATCH_SIZE": "8"}, {}, config).batch_size == 8


@pytest.mark.parametrize(
    ("asked", "times"),
    [
        ({"MAX_TIME": "3"}, (3, 3)),
        ({"MIN_TIME": "20"}, (20, 20)),
        ({"MAX_TIME": "5"}, (5, 5)),
        ({"MIN_TIME": "20", "MAX_TIME": "30"}, (20, 30)),
    ],
)
def test_a_time_that_nobody_asked_for_gives_way(make_workload, tmp_path, asked, times):
    workload = load_workload(make_workload())
    (tmp_path / "quick.yaml").write_text("'*': {MIN_TIME: 5, MAX_TIME: 15}")
    environ = {DEFAULTS_VARIABLE: str(tmp_path / "quick.yaml")}
    for parameters in (
        resolve_parameters(workload, plain(workload), environ | asked, {}),
        resolve_parameters(workload, plain(workload), environ, asked),
    ):
        assert (parameters.min_time, parameters.max_time) == times


def test_times_asked_for_in_two_places_must_agree(make_workload, write_config):
    workload = load_workload(make_workload())
    config = write_config("'*': {MAX_TIME: 20}")
    with pytest.raises(UsageError) as raised:
        resolve_parameters(workload, plain(workload), {"MIN_TIME": "90"}, {}, config)
    assert str(raised.value) == f"MIN_TIME=90 (environment): must be at most MAX_TIME=20 ({config})"


def test_a_relative_model_is_looked_for_where_the_user_is(make_workload, tmp_path, monkeypatch):
    workload = load_workload(make_workload())
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my.pb").touch()
    model = str(tmp_path / "here" / "my.pb")
    environ = {"MODEL": "my.pb", DIRECTORY_VARIABLE: str(tmp_path / "here")}
    assert resolve_parameters(workload, plain(workload), environ, {}).model == model
    monkeypatch.chdir(tmp_path)
    assert resolve_parameters(workload, plain(workload), {}, {"MODEL": "here/my.pb"}).model == model
    assert resolve_parameters(workload, plain(workload), {"MODEL": model}, {}).model == model
    assert resolve_parameters(workload, plain(workload), {"MODEL": "resnet50_v1"}, {}).model == "resnet50_v1"


def test_a_relative_key_is_looked_for_where_the_user_is(make_workload, tmp_path):
    workload = load_workload(make_workload())
    sgx = replace(plain(workload), sgx=True)
    environ = {"WRAP_KEY": "my.key", DIRECTORY_VARIABLE: str(tmp_path)}
    assert resolve_parameters(workload, sgx, environ, {}).wrap_key == str(tmp_path / "my.key")


@pytest.mark.parametrize("model", ["/no/such.pb", "such.pb", "resnet50_v2", "/"])
def test_a_model_that_is_neither_a_file_nor_an_artefact_is_refused(make_workload, model):
    workload = load_workload(make_workload())
    with pytest.raises(UsageError, match=rf"^MODEL={model}: no such file.* or one of resnet50_v1, resnet50v1_5_int8, "):
        resolve_parameters(workload, plain(workload), {"MODEL": model}, {})


def test_an_empty_environment_value_leaves_the_weaker_layers_value(make_workload):
    workload = load_workload(make_workload())
    assert resolve_parameters(workload, plain(workload), {"BATCH_SIZE": ""}, {}).batch_size == 2


def test_yaml_values_become_what_a_user_would_type(make_workload, write_config):
    workload = load_workload(make_workload())
    config = write_config("""
"*":
  VERBOSE: true
  MIN_TIME: 2.5
  STEPS:
  CUSTOMER_ENV: A=1 B='two words'
""")
    parameters = resolve_parameters(workload, gated(workload), {}, {}, config)
    assert (parameters.verbose, parameters.min_time, parameters.steps) == (True, 2.5, 10)
    assert parameters.customer_env == {"A": "1", "B": "two words"}


def test_a_bad_value_in_a_settings_file_is_told_with_the_file(make_workload, write_config):
    workload = load_workload(make_workload())
    config = write_config("'*': {BATCH_SIZE: [1, 2]}")
    with pytest.raises(UsageError) as raised:
        resolve_parameters(workload, plain(workload), {}, {}, config)
    assert f"BATCH_SIZE=[1, 2] ({config}): must be 1 to 4096" in str(raised.value)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("throughput_avx_fp32", {"batch_size": 32, "steps": "auto", "data_type": "dummy"}),
        ("throughput_avx_fp32_gated", {"batch_size": 1, "steps": 50}),
        ("throughput_avx_fp32_pkm", {"batch_size": 32, "steps": "auto"}),
        ("latency_avx_fp32", {"batch_size": 1, "steps": "auto"}),
        ("accuracy_avx_fp32", {"data_type": "real", "steps": "auto"}),
    ],
)
def test_the_repositorys_workload_gives_its_cases_the_documented_defaults(case, expected):
    workload = load_workload(WORKLOAD)
    assert (workload.name, workload.engine) == (WORKLOAD.name, "tensorflow")
    parsed = TestCase.parse(f"test_{workload.slug}_inference_{case}", workload.slug)
    parameters = resolve_parameters(workload, parsed, {}, {})
    assert {name: getattr(parameters, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a yaml mapping"),
        ("- a\n- b\n", "must be a yaml mapping"),
        ("name: [", "not yaml"),
        ("name: a\n*_gated: 1\n", "not yaml"),
        (GOOD.replace("engine:", "motor:"), "engine: Field required"),
        (GOOD + "colour: red\n", "colour: Extra inputs are not permitted"),
        (GOOD.replace("slug: tiny", "slug: Tiny Net"), "slug: String should match pattern"),
        (GOOD.replace("slug: tiny", "slug: 5"), "slug: Input should be a valid string"),
        (GOOD.replace("STEPS: 10", "STEP: 10"), "section *_gated: STEP: no such parameter; did you mean STEPS?"),
        (GOOD.split("defaults")[0], "must map globs of case names"),
        (GOOD.split("defaults")[0] + "defaults: {'*': 3}\n", "must map globs of case names"),
    ],
)
def test_a_bad_workload_file_is_told_what_is_wrong_with_it(make_workload, text, words):
    directory = make_workload(text)
    with pytest.raises(UsageError) as raised:
        load_workload(directory)
    assert str(raised.value).startswith(str(directory / "workload.yaml"))
    assert words in str(raised.value)


def test_a_directory_without_a_workload_file_is_no_workload(tmp_path):
    with pytest.raises(UsageError, match=r"no workload\.yaml there"):
        load_workload(tmp_path)


def test_a_missing_settings_file_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"bkm\.yaml: no such settings file"):
        load_sections(tmp_path / "bkm.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("'*': {COLOUR: red}", "section *: COLOUR: no such parameter"),
        ("BATCH_SIZE: 1", "must map globs of case names, such as '*_gated', to parameters"),
        ("'*':", "must map globs of case names"),
        ("just words", "must be a yaml mapping"),
    ],
)
def test_a_bad_settings_file_is_told_what_is_wrong_with_it(write_config, text, words):
    path = write_config(text)
    with pytest.raises(UsageError) as raised:
        load_sections(path)
    assert str(raised.value).startswith(str(path))
    assert words in str(raised.value)


def test_a_settings_file_that_is_not_text_is_told(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="not yaml"):
        load_sections(path)


@pytest.mark.parametrize("precision", ["cuda_fp32", "cuda_float16", "cuda_bfloat16"])
def test_networks_alone_have_cases_on_a_gpu(precision):
    networks = load_workload(WORKLOAD.parent / "CNN-PyTorch-Public")
    case = networks.parse_case(f"test_{networks.slug}_inference_throughput_{precision}_resnet50_gated")
    assert (case.precision, case.topology) == (precision, "resnet50")
    frozen_graph = load_workload(WORKLOAD)
    with pytest.raises(UsageError) as raised:
        frozen_graph.parse_case(f"test_{frozen_graph.slug}_inference_throughput_{precision}")
    assert "with FUNCTION inference; " in str(raised.value)
    assert "PRECISION avx_fp32 avx_bfloat16 avx_int8 amx_bfloat16 amx_bfloat32 amx_int8;" in str(raised.value)
