"""Case names and parameters, as users write them: in names, environments, arguments and yaml sections."""

import itertools
import re

import pytest

from cnnbench.base.errors import UsageError
from cnnbench.cases.case import TestCase, from_environment, parse_arguments, resolve, settle
from cnnbench.cases.parameters import FIELDS, accepted, default_text, parameters_of
from cnnbench.cases.precisions import PRECISIONS

SLUG = "resnet50v1_5_tensorflow_xeon_public"
DOCUMENTED_NAMES = [
    f"test_{SLUG}_{sgx}inference_{rest}"
    for sgx in ("", "sgx_")
    for rest in (
        "throughput_amx_bfloat16",
        "latency_amx_bfloat16",
        "accuracy_amx_bfloat16",
        "throughput_amx_bfloat16_gated",
        "throughput_amx_bfloat16_pkm",
    )
]
BAD_NAMES = [
    "",
    "resnet50",
    f"test_{SLUG}",
    f"test_{SLUG}_inference_throughput",
    f"test_{SLUG}_training_throughput_avx_fp32",
    f"test_{SLUG}_inference_speed_avx_fp32",
    f"test_{SLUG}_inference_throughput_avx_fp16",
    f"test_{SLUG}_inference_throughput_avx_fp32_nightly",
    f"test_{SLUG}_inference_throughput_avx_fp32_",
    f"test_{SLUG}_inference_sgx_throughput_avx_fp32",
    f"test_{SLUG}_inference_throughput_avx_fp32\n",
    f"Test_{SLUG}_inference_throughput_avx_fp32",
    "test_vgg16_inference_throughput_avx_fp32",
]
THROUGHPUT = TestCase(SLUG, "throughput", "avx_bfloat16")
ACCURACY = TestCase(SLUG, "accuracy", "avx_fp32")

# parameter, its default, then texts with the value each of them means
GOOD_VALUES = {
    "FUNCTION": ("inference", {"inference": "inference"}),
    "MODE": ("throughput", {"throughput": "throughput"}),
    "CASE_TYPE": ("", {}),
    "PRECISION": ("avx_bfloat16", {"avx_bfloat16": "avx_bfloat16"}),
    "DATA_TYPE": ("dummy", {"dummy": "dummy", "generated": "generated", "real": "real"}),
    "BATCH_SIZE": (1, {"1": 1, "32": 32, "4096": 4096}),
    "CORES_PER_INSTANCE": ("auto", {"1": 1, "4096": 4096, "auto": "auto"}),
    "INSTANCES": ("auto", {"1": 1, "4096": 4096, "auto": "auto"}),
    "INSTANCE_MODE": ("flex", {"flex": "flex", "numa": "numa", "socket": "socket"}),
    "STEPS": ("auto", {"1": 1, "1000000": 1_000_000, "auto": "auto"}),
    "WARMUP_STEPS": (5, {"1": 1, "10000": 10_000}),
    "MIN_TIME": (10.0, {"0.1": 0.1, "20": 20.0, "60": 60.0}),
    "MAX_TIME": (60.0, {"10": 10.0, "86400": 86_400.0}),
    "ACCURACY_TIME": ("all", {"0.1": 0.1, "8": 8.0, "86400": 86_400.0, "all": "all"}),
    "WEIGHT_SHARING": (False, {"True": True, "False": False, "true": True, "0": False}),
    "VARIANT": ("auto", {"auto": "auto", "itex": "itex", "stock": "stock", "zentf": "zentf"}),
    "TOPOLOGY": ("resnet50v1_5", {"resnet50v1_5": "resnet50v1_5", "efficientnet_b0": "efficientnet_b0"}),
    "MODEL": ("", {"/models/my graph.pb": "/models/my graph.pb"}),
    "WRAP_KEY": ("", {}),
    "ENGINE": ("auto", {"pytorch": "pytorch", "openvino": "openvino"}),
    "WEIGHTS": ("", {"/weights/resnet18.safetensors": "/weights/resnet18.safetensors"}),
    "NETWORK_FILE": ("", {"/models/my network.onnx": "/models/my network.onnx"}),
    "FP8_ARITHMETIC": ("fp32", {"fp32": "fp32", "bfloat16": "bfloat16"}),
    "FP8_PARAMS": ("F143,F143,auto,auto", {"F152,F143,-3,auto": "F152,F143,-3,auto"}),
    "FP8_SKIP_OP_NAMES": ("", {"Conv_0,Gemm_126": "Conv_0,Gemm_126", "none": "none"}),
    "NUM_OF_LAYERS_KEEP_FP16": (0, {"0": 0, "3": 3}),
    "FP8_METRIC": ("mse", {"kld": "kld"}),
    "FP8_WEIGHT_ROUNDING": ("nearest", {"compensated": "compensated"}),
    "PAD_CONV_CHANNEL": (False, {"True": True, "False": False}),
    "AHEAD_OF_TIME": (False, {"True": True, "False": False}),
    "COMPILED_BATCH": ("auto", {"auto": "auto", "8": "8", "1-4096": "1-4096"}),
    "REPLACEABLE_WEIGHTS": (False, {"True": True, "False": False}),
    "MAX_AUTOTUNE": (False, {"True": True, "False": False}),
    "NORM_TYPE": ("batch", {"batch": "batch", "group": "group", "none": "none"}),
    "NORM_NUM_GROUPS": ("auto", {"1": 1, "4096": 4096, "auto": "auto"}),
    "ENABLE_FAST_GROUPNORM": (False, {"True": True, "False": False}),
    "EFFICIENTNET_EXPAND_RATIO": ("auto", {"1": 1.0, "4": 4.0, "16": 16.0, "auto": "auto"}),
    "EFFICIENTNET_GROUP_DIM": ("auto", {"1": 1, "16": 16, "256": 256, "auto": "auto"}),
    "EIGHT_BIT_IO": (False, {"False": False}),
    "NORMALIZATION_LOCATION": ("host", {"host": "host", "device": "device", "none": "none"}),
    "MICRO_BATCH_SIZE": ("auto", {"1": 1, "auto": "auto"}),
    "DEVICE_ITERATIONS": (1, {"1": 1, "10000": 10_000}),
    "REPLICAS": (1, {"1": 1, "4096": 4096}),
    "ENERGY_METER": ("", {"read-meter --watts 'of all'": "read-meter --watts 'of all'"}),
    "IDLE_TIME": (2.0, {"0": 0.0, "0.5": 0.5, "3600": 3600.0}),
    "NUMA_AWARE": (True, {"True": True, "False": False}),
    "HALF_PARTIAL": (False, {"True": True, "False": False}),
    "CUDA_GRAPHS": (False, {"False": False}),
    "PROFILE": (False, {"True": True, "False": False}),
    "PIPELINE_SPLITS": ("", {"layer2 layer3.0": "layer2 layer3.0"}),
    "NUM_IO_THREADS": ("auto", {"1": 1, "4096": 4096, "auto": "auto"}),
    "MODEL_CACHE_PATH": ("", {"/compiled": "/compiled"}),
    "DATASET": ("procedural", {"procedural": "procedural", "imagenet": "imagenet", "/my images": "/my images"}),
    "VERBOSE": (False, {"True": True, "1": True}),
    "ONEDNN_VERBOSE": (False, {"True": True, "1": True}),
    "FORCE": (False, {"True": True, "False": False}),
    "MPI": (False, {"True": True, "False": False}),
    "NUM_MPI": ("", {"1": 1, "4096": 4096}),
    "HOSTFILE": ("", {}),
    "SCENARIO": ("", {"Offline": "Offline", "SingleStream": "SingleStream"}),
    "TARGET_QPS": ("", {"0.5": 0.5, "100": 100.0}),
    "USER_CONF": ("", {}),
    "AUDIT": ("", {"TEST01": "TEST01", "TEST05": "TEST05"}),
    "CLIENT_CORES": (1, {"1": 1, "4096": 4096}),
    "CONCURRENCY": ("auto", {"auto": "auto", "1": 1, "10000": 10000}),
    "REQUEST_RATE": ("", {"0.01": 0.01, "250": 250.0}),
    "PROTOCOL": ("grpc", {"grpc": "grpc", "http": "http"}),
    "SHARED_MEMORY": (False, {"True": True, "False": False}),
    "PERF_ANALYZER": (False, {"True": True, "False": False}),
    "DYNAMIC_BATCHING": (True, {"True": True, "False": False}),
    "MAX_BATCH_SIZE": ("auto", {"auto": "auto", "1": 1, "4096": 4096}),
    "PREFERRED_BATCH_SIZE": ("", {"4 8": "4 8"}),
    "MAX_QUEUE_DELAY_US": (0, {"0": 0, "10000000": 10_000_000}),
    "LATENCY_BOUND_MS": (15.0, {"0.01": 0.01, "15": 15.0}),
    "MODEL_REPOSITORY": ("", {}),
    "GRPC_PORT": ("", {"1": 1, "65535": 65535}),
    "TRITON_SERVER": ("", {}),
    "CUSTOMER_ENV": ({}, {"A=1": {"A": "1"}, "A=1 B='two words'": {"A": "1", "B": "two words"}}),
}

BAD_VALUES = [
    ("DATA_TYPE", "jpeg", "dummy, generated, real"),
    ("ENGINE", "caffe", "onnxruntime, openvino, pytorch, inductor, zentorch, aotinductor, auto"),
    ("NORM_TYPE", "layer", "batch, group, none"),
    ("NORM_NUM_GROUPS", "0", "1 to 4096 or auto"),
    ("ENABLE_FAST_GROUPNORM", "2", "True, False"),
    ("EFFICIENTNET_EXPAND_RATIO", "0.5", "1 to 16 or auto"),
    ("EFFICIENTNET_GROUP_DIM", "0", "1 to 256 or auto"),
    ("EIGHT_BIT_IO", "maybe", "True, False"),
    ("NORMALIZATION_LOCATION", "cloud", "host, device, none"),
    ("MICRO_BATCH_SIZE", "0", "1 to 4096 or auto"),
    ("DEVICE_ITERATIONS", "0", "1 to 10000"),
    ("REPLICAS", "0", "1 to 4096"),
    ("NUMA_AWARE", "yes please", "True, False"),
    ("HALF_PARTIAL", "half", "True, False"),
    ("CUDA_GRAPHS", "some", "True, False"),
    ("PROFILE", "often", "True, False"),
    ("NUM_IO_THREADS", "none", "1 to 4096 or auto"),
    ("ENERGY_METER", "read-meter 'of all", "text"),
    ("IDLE_TIME", "-1", "0 to 3600"),
    ("IDLE_TIME", "3601", "0 to 3600"),
    ("IDLE_TIME", "nan", "0 to 3600"),
    ("BATCH_SIZE", "0", "1 to 4096"),
    ("BATCH_SIZE", "4097", "1 to 4096"),
    ("BATCH_SIZE", "1.5", "1 to 4096"),
    ("BATCH_SIZE", "1 8 32", "1 to 4096"),
    ("CORES_PER_INSTANCE", "all", "1 to 4096 or auto"),
    ("CORES_PER_INSTANCE", "0", "1 to 4096 or auto"),
    ("INSTANCES", "-1", "1 to 4096 or auto"),
    ("INSTANCE_MODE", "node", "flex, numa, socket"),
    ("STEPS", "0", "1 to 1000000 or auto"),
    ("WARMUP_STEPS", "0", "1 to 10000"),
    ("MIN_TIME", "0", "0.1 to 86400"),
    ("MIN_TIME", "nan", "0.1 to 86400"),
    ("MAX_TIME", "inf", "0.1 to 86400"),
    ("ACCURACY_TIME", "0", "0.1 to 86400 or all"),
    ("ACCURACY_TIME", "auto", "0.1 to 86400 or all"),
    ("WEIGHT_SHARING", "maybe", "True, False"),
    ("VARIANT", "intel", "auto, itex, stock, zentf"),
    ("TOPOLOGY", "vgg16", "resnet50v1_5"),
    ("FP8_ARITHMETIC", "fp16", "fp32, bfloat16"),
    ("FP8_PARAMS", "F143,F143", "text"),
    ("NUM_OF_LAYERS_KEEP_FP16", "-1", "0 to 10000"),
    ("FP8_METRIC", "best", "mse, mae, snr, kld, cos_dist"),
    ("FP8_WEIGHT_ROUNDING", "up", "nearest, compensated"),
    ("PAD_CONV_CHANNEL", "some", "True, False"),
    ("AHEAD_OF_TIME", "soon", "True, False"),
    ("COMPILED_BATCH", "9-1", "auto or text"),
    ("COMPILED_BATCH", "0", "auto or text"),
    ("COMPILED_BATCH", "1-5000", "auto or text"),
    ("REPLACEABLE_WEIGHTS", "few", "True, False"),
    ("MAX_AUTOTUNE", "2", "True, False"),
    ("VERBOSE", "2", "True, False"),
    ("ONEDNN_VERBOSE", "loud", "True, False"),
    ("FORCE", "please", "True, False"),
    ("MPI", "openmpi", "True, False"),
    ("NUM_MPI", "0", "1 to 4096 or empty"),
    ("SCENARIO", "offline", "empty, SingleStream, MultiStream, Server, Offline"),
    ("TARGET_QPS", "0", "0.001 to 10000000 or empty"),
    ("AUDIT", "TEST02", "empty, TEST01, TEST04, TEST05"),
    ("CLIENT_CORES", "0", "1 to 4096"),
    ("CONCURRENCY", "10001", "1 to 10000 or auto"),
    ("REQUEST_RATE", "0", "0.01 to 1000000 or empty"),
    ("PROTOCOL", "tcp", "grpc, http"),
    ("SHARED_MEMORY", "cuda", "True, False"),
    ("PERF_ANALYZER", "path", "True, False"),
    ("DYNAMIC_BATCHING", "8", "True, False"),
    ("MAX_BATCH_SIZE", "0", "1 to 4096 or auto"),
    ("MAX_QUEUE_DELAY_US", "-1", "0 to 10000000"),
    ("LATENCY_BOUND_MS", "0", "0.01 to 1000000"),
    ("GRPC_PORT", "65536", "1 to 65535 or empty"),
    ("CUSTOMER_ENV", "A", "NAME=VALUE words"),
    ("CUSTOMER_ENV", "=1", "NAME=VALUE words"),
    ("CUSTOMER_ENV", "A-B=1", "NAME=VALUE words"),
    ("CUSTOMER_ENV", "A='open", "NAME=VALUE words"),
]


def value_of(parameters, name):
    return getattr(parameters, name.lower())


def resolve_environment(environ, case=THROUGHPUT):
    return resolve(case, {"environment": from_environment(environ)})


def test_a_documented_name_says_what_it_says_and_comes_back(subtests):
    for name in DOCUMENTED_NAMES:
        with subtests.test(name):
            case = TestCase.parse(name, SLUG)
            assert case.name == name
            assert (case.function, case.precision, case.sgx) == ("inference", "amx_bfloat16", "_sgx_" in name)
            assert case.mode == name.removeprefix(f"test_{SLUG}_").removeprefix("sgx_").split("_")[1]
            assert case.case_type == {"gated": "gated", "pkm": "pkm"}.get(name.rsplit("_", 1)[1], "")


def test_every_mode_and_precision_comes_back():
    for mode, precision in itertools.product(["throughput", "latency", "accuracy"], PRECISIONS):
        case = TestCase(SLUG, mode, precision)
        assert TestCase.parse(case.name, SLUG) == case


def test_a_bad_name_is_told_how_names_are_made(subtests):
    for name in BAD_NAMES:
        with subtests.test(name):
            with pytest.raises(UsageError) as raised:
                TestCase.parse(name, SLUG)
            for words in (
                f"test_{SLUG}_[sgx_]FUNCTION_MODE_PRECISION[_CASE_TYPE]",
                "FUNCTION inference;",
                "MODE throughput latency accuracy",
                "PRECISION avx_fp32 avx_bfloat16 avx_int8 amx_bfloat16 amx_bfloat32 amx_int8",
                "CASE_TYPE gated pkm",
            ):
                assert words in str(raised.value)


def test_the_slug_is_no_pattern():
    with pytest.raises(UsageError):
        TestCase.parse("test_aXb_inference_latency_avx_fp32", "a.b")


def test_every_parameter_has_its_good_and_bad_values_here():
    assert set(GOOD_VALUES) == set(FIELDS)
    assert {name for name, _, _ in BAD_VALUES} == set(FIELDS) - {
        "FUNCTION",
        "MODE",
        "CASE_TYPE",
        "PRECISION",
        "MODEL",  # any text may be a path
        "NETWORK_FILE",
        "DATASET",
        "FP8_SKIP_OP_NAMES",  # or the name of an operation
        "WEIGHTS",
        "MODEL_CACHE_PATH",
        "PIPELINE_SPLITS",
        "HOSTFILE",
        "WRAP_KEY",
        "PREFERRED_BATCH_SIZE",  # which is held against MAX_BATCH_SIZE
        "MODEL_REPOSITORY",
        "TRITON_SERVER",
        "USER_CONF",
    }


def test_a_wrap_key_is_for_sgx_cases_alone():
    sgx = TestCase(SLUG, "throughput", "avx_bfloat16", sgx=True)
    assert resolve_environment({"WRAP_KEY": "/my key"}, sgx).wrap_key == "/my key"
    with pytest.raises(UsageError, match=r"^WRAP_KEY=/my key \(environment\): only sgx_ cases have a model to encrypt"):
        resolve_environment({"WRAP_KEY": "/my key"})


def test_an_empty_value_in_the_environment_means_the_default(subtests):
    for name, (default, _) in GOOD_VALUES.items():
        with subtests.test(name):
            assert value_of(resolve(THROUGHPUT, {}), name) == default
            assert resolve_environment({name: ""}) == resolve(THROUGHPUT, {})


def test_good_values_from_the_environment_from_arguments_and_from_arguments_in_the_environment(subtests):
    for name, (_, texts) in GOOD_VALUES.items():
        for text, value in texts.items():
            with subtests.test(f"{name}={text}"):
                argument = f"--{name.lower()}={text}"
                assert value_of(resolve_environment({name: text}), name) == value
                assert value_of(resolve_environment({name: argument}), name) == value
                assert value_of(resolve(THROUGHPUT, {"argument": parse_arguments([argument])}), name) == value


ON_GPU = TestCase(SLUG, "throughput", "cuda_float16")


@pytest.mark.parametrize(
    ("case", "settings", "reason"),
    [
        (ON_GPU, {"REPLICAS": "2"}, r"^REPLICAS=2 \(environment\): .* take turns on the GPU; .* by INSTANCES$"),
    ],
)
def test_what_only_a_cpu_or_only_a_gpu_has_is_refused_to_the_other(case, settings, reason):
    with pytest.raises(UsageError, match=reason):
        resolve_environment(settings, case)


def test_cuda_graphs_are_for_cuda_cases():
    assert resolve_environment({"CUDA_GRAPHS": "True"}, ON_GPU).cuda_graphs is True


def test_a_flag_alone_means_true():
    assert parse_arguments(["--verbose", "--weight-sharing"]) == {"VERBOSE": "True", "WEIGHT_SHARING": "True"}
    assert resolve_environment({"WEIGHT_SHARING": "--weight_sharing"}).weight_sharing is True


def test_dashes_and_underscores_are_alike_in_arguments():
    assert parse_arguments(["--batch-size=8"]) == parse_arguments(["--batch_size=8"]) == {"BATCH_SIZE": "8"}


def test_only_the_first_equals_sign_separates():
    assert parse_arguments(["--customer_env=A=1 B=x=y"]) == {"CUSTOMER_ENV": "A=1 B=x=y"}


def test_the_later_layer_wins_and_leaves_the_rest():
    layers = {
        "workload.yaml": {"BATCH_SIZE": "1", "STEPS": "1", "WARMUP_STEPS": "1"},
        "environment": {"BATCH_SIZE": "2", "STEPS": "2"},
        "argument": {"BATCH_SIZE": "3"},
    }
    parameters = resolve(THROUGHPUT, layers)
    assert (parameters.batch_size, parameters.steps, parameters.warmup_steps) == (3, 2, 1)


def test_a_bad_value_is_named_with_its_parameter_its_source_and_what_is_accepted(subtests):
    for name, text, words in BAD_VALUES:
        with subtests.test(f"{name}={text}"):
            with pytest.raises(UsageError) as raised:
                resolve_environment({name: text})
            assert str(raised.value).startswith(f"{name}={text} (environment): must be {words}")
            assert raised.value.exit_code == 2


def test_a_bad_value_that_a_stronger_layer_replaces_does_no_harm():
    layers = {"environment": {"BATCH_SIZE": "0"}, "argument": {"BATCH_SIZE": "8"}}
    assert resolve(THROUGHPUT, layers).batch_size == 8


def test_what_is_accepted_and_the_default_can_be_said():
    for name in FIELDS:
        assert accepted(name), name
        assert "None" not in accepted(name) + default_text(name), name


def test_an_unknown_parameter_in_an_argument_is_told_the_nearest_one():
    with pytest.raises(UsageError, match=r"^BATCHSIZE: no such parameter; did you mean BATCH_SIZE\? --describe-params"):
        parse_arguments(["--batchsize=1"])


def test_an_unknown_parameter_in_a_layer_is_told_the_known_ones():
    with pytest.raises(UsageError, match=r"^COLOUR: no such parameter; known are FUNCTION "):
        resolve(THROUGHPUT, {"argument": {"COLOUR": "red"}})


def test_other_variables_of_the_environment_are_nobodys_business():
    assert from_environment({"PATH": "/bin", "BATCH_SIZE": "2", "STEPS": ""}) == {"BATCH_SIZE": "2"}


@pytest.mark.parametrize("argument", ["batch_size=1", "-batch_size=1", "--batch_size", "32", "--"])
def test_an_argument_that_is_not_one_is_refused(argument):
    with pytest.raises(UsageError, match=re.escape(argument) + ".*--batch_size=1"):
        parse_arguments([argument])


@pytest.mark.parametrize(
    ("name", "value", "fixed"),
    [
        ("FUNCTION", "training", "inference"),
        ("MODE", "latency", "throughput"),
        ("MODE", "speed", "throughput"),
        ("PRECISION", "amx_int8", "avx_bfloat16"),
        ("CASE_TYPE", "pkm", "empty"),
    ],
)
def test_what_the_name_fixes_cannot_be_changed(name, value, fixed):
    with pytest.raises(UsageError) as raised:
        resolve_environment({name: value})
    assert str(raised.value) == f"{name}={value} (environment): the case {THROUGHPUT.name} fixes it as {fixed}"


def test_what_the_name_fixes_may_be_repeated():
    case = TestCase(SLUG, "throughput", "avx_fp32", "gated")
    parameters = resolve_environment(case.fixed, case)
    assert (parameters.mode, parameters.precision, parameters.case_type) == ("throughput", "avx_fp32", "gated")


@pytest.mark.parametrize("precision", ["avx_fp32", "amx_bfloat32"])
def test_weight_sharing_is_refused_where_it_is_not_supported(precision):
    with pytest.raises(UsageError, match=f"^WEIGHT_SHARING=True .environment.: not supported for {precision};"):
        resolve_environment({"WEIGHT_SHARING": "True"}, TestCase(SLUG, "throughput", precision))


@pytest.mark.parametrize("precision", ["avx_bfloat16", "avx_int8", "amx_bfloat16", "amx_int8"])
def test_weight_sharing_is_taken_elsewhere(precision):
    case = TestCase(SLUG, "throughput", precision)
    assert resolve_environment({"WEIGHT_SHARING": "True"}, case).weight_sharing is True


@pytest.mark.parametrize("instance_mode", ["numa", "socket"])
@pytest.mark.parametrize("name", ["CORES_PER_INSTANCE", "INSTANCES"])
def test_numbers_of_instances_and_cores_are_refused_where_the_mode_decides_them(instance_mode, name):
    with pytest.raises(UsageError) as raised:
        resolve(THROUGHPUT, {"environment": {name: "2"}, "argument": {"INSTANCE_MODE": instance_mode}})
    assert str(raised.value).startswith(f"INSTANCE_MODE={instance_mode} (argument): decides how many instances")
    assert f"but {name}=2 (environment); leave one of the two out" in str(raised.value)
    settings = {name: "auto", "INSTANCE_MODE": instance_mode}
    assert resolve_environment(settings).instance_mode == instance_mode
    assert value_of(resolve_environment({name: "2", "INSTANCE_MODE": "flex"}), name) == 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"NUM_MPI": "2", "INSTANCES": "4"},
            "NUM_MPI=2 \\(environment\\): decides how many .* INSTANCES=4 \\(environment",
        ),
        ({"NUM_MPI": "2", "INSTANCE_MODE": "numa"}, "NUM_MPI=2 .* INSTANCE_MODE=numa .*; leave one of the two out"),
        ({"NUM_MPI": "2", "REPLICAS": "2"}, "NUM_MPI=2 .* each in a process of its own, but REPLICAS=2"),
        ({"HOSTFILE": "hosts"}, "HOSTFILE=hosts \\(environment\\): only MPI launches on several hosts; give MPI=True"),
    ],
)
def test_what_contradicts_a_launch_through_mpi(settings, reason):
    with pytest.raises(UsageError, match=reason):
        resolve_environment(settings)


def test_what_is_only_declared_gives_way_to_ranks_a_socket():
    case = TestCase("x", "throughput", "avx_bfloat16")
    settings = {"INSTANCES": "1", "REPLICAS": "2", "WEIGHT_SHARING": "True", "CORES_PER_INSTANCE": "1"}
    for declared in ({"workload.yaml": settings}, {"workload.yaml": {"INSTANCE_MODE": "numa"}}):
        parameters = resolve(case, {"environment": {"NUM_MPI": "2"}}, declared)
        assert (parameters.num_mpi, parameters.instances, parameters.instance_mode) == (2, "auto", "flex")
        assert (parameters.replicas, parameters.weight_sharing, parameters.cores_per_instance) == (1, False, "auto")
    asked = {"environment": {"NUM_MPI": "2", "CORES_PER_INSTANCE": "3"}}
    assert resolve(case, asked, {"workload.yaml": settings}).cores_per_instance == 3
    with pytest.raises(UsageError, match=r"NUM_MPI=2 \(argument\): .* INSTANCES=4 \(environment\)"):
        resolve(case, {"environment": {"INSTANCES": "4"}, "argument": {"NUM_MPI": "2"}}, {"workload.yaml": settings})
    assert resolve(case, {"environment": {"NUM_MPI": ""}}, {"workload.yaml": settings}).cores_per_instance == 1


def test_weights_are_not_shared_between_ranks():
    case = TestCase("x", "throughput", "avx_bfloat16")
    with pytest.raises(UsageError, match=r"NUM_MPI=2 .* but WEIGHT_SHARING=True"):
        resolve(case, {"environment": {"NUM_MPI": "2", "WEIGHT_SHARING": "True"}})


@pytest.mark.parametrize("name", ["MPI", "NUM_MPI"])
def test_an_enclave_is_not_launched_through_mpi(name):
    case = TestCase("x", "throughput", "avx_fp32", sgx=True)
    with pytest.raises(UsageError, match=f"^{name}=.*SGX cases run in a container, where nothing is launched through"):
        resolve(case, {"environment": {name: "1" if name == "NUM_MPI" else "True"}})


def test_ranks_a_socket_imply_mpi():
    parameters, _ = settle(resolve_environment({"NUM_MPI": "2"}))
    assert (parameters.mpi, parameters.num_mpi) == (True, 2)


REAL = {"DATA_TYPE": "real"}


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({**REAL, "STEPS": "20"}, "STEPS=20 not used: accuracy always goes over the whole set"),
        ({"DATA_TYPE": "dummy"}, "DATA_TYPE=dummy not used: accuracy always reads real images"),
    ],
)
def test_accuracy_goes_over_the_whole_real_set_and_says_what_it_did_not_use(settings, note):
    asked = resolve_environment(settings, ACCURACY)
    settled, notes = settle(asked)
    assert (settled.steps, settled.data_type) == ("auto", "real")
    assert notes == [note]
    assert asked == resolve_environment(settings, ACCURACY)


def test_accuracy_takes_what_it_does_anyway():
    asked = resolve_environment({"STEPS": "auto", **REAL}, ACCURACY)
    assert settle(asked) == (asked, [])


def test_the_other_modes_use_what_they_are_given():
    asked = resolve_environment({"STEPS": "20", "DATA_TYPE": "dummy"})
    assert settle(asked) == (asked, [])


def test_the_least_time_may_not_pass_the_most():
    with pytest.raises(UsageError, match=r"^MIN_TIME=61 \(environment\): must be at most MAX_TIME=60 \(argument\)$"):
        resolve(THROUGHPUT, {"environment": {"MIN_TIME": "61"}, "argument": {"MAX_TIME": "60"}})
    with pytest.raises(UsageError, match=r"^MIN_TIME=61 \(workload.yaml\): must be at most MAX_TIME=60 \(default\)$"):
        resolve(THROUGHPUT, {}, {"workload.yaml": {"MIN_TIME": "61"}})
    assert resolve_environment({"MIN_TIME": "5", "MAX_TIME": "5"}).max_time == 5


@pytest.mark.parametrize(("settings", "times"), [({"MIN_TIME": "90"}, (90, 90)), ({"MAX_TIME": "3"}, (3, 3))])
def test_the_tables_own_time_gives_way_to_the_one_asked_for(settings, times):
    parameters = resolve_environment(settings)
    assert (parameters.min_time, parameters.max_time) == times


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("A=", {"A": ""}),
        ("A=1  B=2", {"A": "1", "B": "2"}),
        ("A=1 A=2", {"A": "2"}),
        ("""A="two words" B='it"s'""", {"A": "two words", "B": 'it"s'}),
        ("OPTS=a=b,c=d", {"OPTS": "a=b,c=d"}),
        (r"A=two\ words", {"A": "two words"}),
        ("A='$(touch x)'", {"A": "$(touch x)"}),
        ("A=$(touch\\ x)", {"A": "$(touch x)"}),
        ("A=`id`", {"A": "`id`"}),
        ("A=$HOME B=~ C=* D=1;reboot E=a>b", {"A": "$HOME", "B": "~", "C": "*", "D": "1;reboot", "E": "a>b"}),
    ],
)
def test_customer_env_is_quoted_as_in_a_shell_and_evaluated_nowhere(text, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_environment({"CUSTOMER_ENV": text}).customer_env == pairs
    assert list(tmp_path.iterdir()) == []


def test_an_unquoted_command_substitution_is_only_a_malformed_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"CUSTOMER_ENV=A=\$\(touch x\).*'x\)' is not NAME=VALUE"):
        resolve_environment({"CUSTOMER_ENV": "A=$(touch x)"})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_of_the_model_is_refused():
    with pytest.raises(UsageError, match="no such parameter"):
        resolve(THROUGHPUT, {"environment": {"batch_size": "1"}})


def test_a_name_tells_networks_apart_where_a_workload_has_several():
    networks = ("resnet18", "efficientnet_b0")
    case = TestCase.parse("test_cnn_inference_latency_avx_fp32_efficientnet_b0_gated", "cnn", networks)
    assert (case.topology, case.precision, case.case_type) == ("efficientnet_b0", "avx_fp32", "gated")
    assert case.name == "test_cnn_inference_latency_avx_fp32_efficientnet_b0_gated"
    assert resolve(case, {}).topology == "efficientnet_b0"
    with pytest.raises(UsageError, match=r"_PRECISION_TOPOLOGY\[_CASE_TYPE\] with .*TOPOLOGY resnet18 efficientnet_b0"):
        TestCase.parse("test_cnn_inference_latency_avx_fp32_gated", "cnn", networks)
    with pytest.raises(UsageError, match=r"TOPOLOGY=resnet18 .*fixes it as efficientnet_b0"):
        resolve(case, {"argument": {"TOPOLOGY": "resnet18"}})


def test_a_harness_has_its_own_parameters_besides_those_of_all():
    tensorflow, cnn = parameters_of("graph"), parameters_of("network")
    serving = parameters_of("network", "serving")
    assert set(tensorflow) | set(cnn) | set(serving) == set(FIELDS)
    assert {"PROTOCOL", "LATENCY_BOUND_MS"} <= set(serving) - set(cnn)
    assert {"MPI", "REPLICAS"} <= set(cnn) - set(serving)
    assert {"BATCH_SIZE", "TOPOLOGY", "CUSTOMER_ENV"} <= set(tensorflow) & set(cnn)
    assert {"VARIANT", "MODEL", "WEIGHT_SHARING", "WRAP_KEY"} == set(tensorflow) - set(cnn)
    assert {"ENGINE", "WEIGHTS", "NORM_TYPE"} <= set(cnn) - set(tensorflow)


def test_another_harness_parameter_is_none_of_the_workloads():
    with pytest.raises(UsageError, match=r"WEIGHT_SHARING: no such parameter of this workload; known are FUNCTION"):
        resolve(THROUGHPUT, {"argument": {"WEIGHT_SHARING": "True"}}, known=parameters_of("network"))
    assert from_environment({"VARIANT": "itex", "STEPS": "3"}, parameters_of("network")) == {"STEPS": "3"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"BATCH_SIZE": "8", "MICRO_BATCH_SIZE": "3"}, "BATCH_SIZE=8: must be a multiple of MICRO_BATCH_SIZE=3"),
        ({"EIGHT_BIT_IO": "True"}, "EIGHT_BIT_IO=True .*give NORMALIZATION_LOCATION=device or none"),
    ],
)
def test_contradicting_options_of_a_network_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        resolve(THROUGHPUT, {"argument": settings})


def test_a_step_takes_as_many_batches_as_there_are_device_iterations():
    assert resolve(THROUGHPUT, {"argument": {"BATCH_SIZE": "8", "DEVICE_ITERATIONS": "3"}}).images_per_step == 24
