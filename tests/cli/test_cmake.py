"""The real cmake and ctest on the repository's own declarations."""

import json
import re
import shutil
import subprocess

import pytest

from cmake_build import NAME, PREFIX, ROOT, find_tool, run_cmake, write_stub
from cnnbench.cases.platforms import load_platforms

REFERENCE_CASES = [  # the reference document's list for SPR
    "inference_throughput_amx_bfloat16",
    "inference_latency_amx_bfloat16",
    "inference_accuracy_amx_bfloat16",
    "inference_throughput_amx_bfloat16_gated",
    "inference_throughput_amx_bfloat16_pkm",
    "sgx_inference_throughput_amx_bfloat16",
    "sgx_inference_latency_amx_bfloat16",
    "sgx_inference_accuracy_amx_bfloat16",
    "sgx_inference_throughput_amx_bfloat16_gated",
    "sgx_inference_throughput_amx_bfloat16_pkm",
]


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    return write_stub(tmp_path_factory.mktemp("python") / "python")


@pytest.fixture(scope="module")
def spr(tmp_path_factory, stub):
    build = tmp_path_factory.mktemp("spr") / "a build"
    done = run_cmake(build, stub, "-DPLATFORM=SPR", "-DTIMEOUT=600")
    assert done.returncode == 0, done.stderr
    return build


LATENCY = "resnet50v1_5.*latency_avx_fp32"


def _listed(directory, *arguments):
    done = subprocess.run([find_tool("ctest"), "-N", *arguments], cwd=directory, capture_output=True, text=True)
    return dict(re.findall(r"Test +#(\d+): test_resnet50v1_5_tensorflow_xeon_public_(\S+)", done.stdout))


def _precisions(build, stub, platform):
    done = run_cmake(build, stub, f"-DPLATFORM={platform}")
    assert done.returncode == 0, done.stderr
    cases = _listed(build).values()
    plain = [case for case in cases if not case.startswith("sgx_")]
    return list(dict.fromkeys(case.split("_", 2)[2].removesuffix("_gated").removesuffix("_pkm") for case in plain)), [
        case for case in cases if case.startswith("sgx_")
    ]


@pytest.mark.parametrize("where", ["", f"workload/{NAME}"])
def test_spr_starts_with_the_ten_cases_of_the_reference_document(spr, where):
    listed = list(_listed(spr / where).values())  # of this workload; in the build directory there are others' too
    assert listed[:10] == REFERENCE_CASES
    assert len(listed) == 35
    assert listed[10:] == [
        f"inference_{mode}_{precision}{case_type}"
        for precision in ("amx_int8", "amx_bfloat32", "avx_int8", "avx_bfloat16", "avx_fp32")
        for mode, case_type in [
            ("throughput", ""),
            ("latency", ""),
            ("accuracy", ""),
            ("throughput", "_gated"),
            ("throughput", "_pkm"),
        ]
    ]


def test_ctest_sh_lists_what_ctest_lists(spr):
    script = spr / "workload" / NAME / "ctest.sh"
    listing = subprocess.run([script, "-N"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^  Test +#\d+: (\S+)$", listing, re.MULTILINE)
    assert names[:10] == [PREFIX + case for case in REFERENCE_CASES]
    assert listing.startswith("Test project")


@pytest.mark.parametrize(
    ("platform", "precisions", "sgx_cases"),
    [
        ("ICX", ["avx_int8", "avx_fp32"], 5),
        ("GENOA", ["avx_bfloat16", "avx_int8", "avx_fp32"], 0),
        ("MILAN", ["avx_fp32"], 0),
        ("GENERIC", ["amx_bfloat16", "amx_int8", "amx_bfloat32", "avx_bfloat16", "avx_int8", "avx_fp32"], 0),
    ],
)
def test_a_platform_lists_only_its_precisions(tmp_path, stub, platform, precisions, sgx_cases):
    listed, sgx = _precisions(tmp_path, stub, platform)
    assert listed == precisions
    assert len(sgx) == sgx_cases


def test_every_known_platform_is_declared():
    declared = {path.stem for path in (ROOT / "workload" / NAME / "cmake").glob("*.cmake")}
    assert declared == {platform.code for platform in load_platforms()}


def test_cases_carry_their_properties(spr):
    workload = spr / "workload" / NAME
    shown = subprocess.run([find_tool("ctest"), "--show-only=json-v1"], cwd=workload, capture_output=True, text=True)
    tests = {test["name"].removeprefix(PREFIX): test for test in json.loads(shown.stdout)["tests"]}
    properties = {name: {one["name"]: one["value"] for one in test["properties"]} for name, test in tests.items()}
    gated = properties["sgx_inference_throughput_amx_bfloat16_gated"]
    assert set(gated["LABELS"]) == {"throughput", "amx_bfloat16", "gated", "SPR", "sgx"}
    assert set(properties["inference_latency_avx_fp32"]["LABELS"]) == {"latency", "avx_fp32", "SPR"}
    assert all(values["RESOURCE_LOCK"] == ["cpu"] for values in properties.values())
    assert gated["TIMEOUT"] == 600 + 300 + 60
    assert gated["SKIP_RETURN_CODE"] == 77
    assert gated["WORKING_DIRECTORY"] == str(workload)


@pytest.mark.parametrize(
    ("timeout", "run", "pull"), [("600", 600, 300), ("28800,3600", 28800, 3600), ("1", 1, 1), ("60,90", 60, 90)]
)
def test_the_timeout_is_for_the_run_and_for_pulling_its_image(tmp_path, stub, checkout, timeout, run, pull):
    with (checkout / "CMakeLists.txt").open("a") as lists:
        lists.write('message(STATUS "timeouts ${RUN_TIMEOUT} and ${PULL_TIMEOUT}")\n')
    done = run_cmake(tmp_path / "build", stub, "-DPLATFORM=SKX", f"-DTIMEOUT={timeout}", source=checkout)
    assert done.returncode == 0, done.stderr
    assert f"-- timeouts {run} and {pull}\n" in done.stdout
    made = (tmp_path / "build" / "workload" / NAME / "CTestTestfile.cmake").read_text()
    assert set(re.findall(r' TIMEOUT "(\d+)"', made)) == {str(run + pull + 60)}
    assert f'"--timeout" "{run}"' in made


@pytest.mark.parametrize(
    ("labels", "count"),
    [(["gated"], 7), (["avx_fp32", "latency"], 1), (["sgx"], 5), (["SPR"], 35), (["amx_int8"], 5)],
)
@pytest.mark.parametrize("where", ["", f"workload/{NAME}"])
def test_labels_choose_cases(spr, where, labels, count):
    assert len(_listed(spr / where, *(word for label in labels for word in ("-L", label)))) == count


def test_plain_ctest_runs_a_case_through_validate_sh(spr, stub, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    subprocess.run([find_tool("ctest"), "-R", LATENCY], cwd=spr, check=True, capture_output=True)
    ran = json.loads((tmp_path / "log").read_text())
    workload = str(spr / "workload" / NAME)
    options = dict(zip(ran["arguments"][::2], ran["arguments"][1::2], strict=True))
    assert int(options.pop("--end-with")) > 1
    assert options == {
        "--backend": "native",
        "--workload": str(ROOT / "workload" / NAME),
        "--case": f"{PREFIX}inference_latency_avx_fp32",
        "--logs-root": workload,
        "--timeout": "600",
    }
    assert ran["directory"] == workload
    assert ran["environment"]["CNNBENCH_PYTHON"] == str(stub)


def test_a_case_that_exits_with_77_is_skipped(spr, tmp_path, monkeypatch):
    for name, value in {"STUB_LOG": str(tmp_path / "log"), "STUB_EXIT": "77"}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([find_tool("ctest"), "-R", LATENCY], cwd=spr, capture_output=True, text=True)
    assert "Skipped" in done.stdout
    assert done.returncode == 0


@pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine: there is nothing that `make` could do")
def test_building_succeeds_with_nothing_to_build(spr):
    subprocess.run([find_tool("cmake"), "--build", spr], check=True, capture_output=True)


COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(
    not COMPILER, reason="no C compiler; on Debian and Ubuntu: apt-get install gcc libc6-dev"
)


@needs_compiler
@pytest.mark.parametrize("of_a_sweep", [False, True])
def test_a_case_gets_the_program_that_measures_peaks(spr, tmp_path, monkeypatch, of_a_sweep):
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("CNNBENCH_PEAK", "/of/another")
    sweep = spr / "workload" / NAME / "sweep.sh"
    command = [sweep] if of_a_sweep else [find_tool("ctest"), "-R", LATENCY]
    subprocess.run(command, cwd=spr, check=True, capture_output=True)
    program = json.loads((tmp_path / "log").read_text())["environment"]["CNNBENCH_PEAK"]
    assert program == str(spr / "cnnbench-peak")
    assert "--cpus: must be given" in subprocess.run([program], capture_output=True, text=True).stderr


@needs_compiler
def test_the_program_is_compiled_anew_when_its_source_changes(tmp_path, stub, checkout):
    source, program = checkout / "native" / "peak.c", tmp_path / "build" / "cnnbench-peak"
    built = []
    for code in ("int main(void) { return 3; }", None, "int main(void) { return 4; }"):
        if code:
            source.write_text(code)
        assert run_cmake(tmp_path / "build", stub, "-DPLATFORM=SKX", source=checkout).returncode == 0
        built.append((subprocess.run([program]).returncode, program.stat().st_mtime_ns))
    assert [code for code, _ in built] == [3, 3, 4]
    assert built[0] == built[1]


@needs_compiler
def test_a_source_that_does_not_compile_leaves_no_older_program(tmp_path, stub, checkout):
    program = tmp_path / "build" / "cnnbench-peak"
    assert run_cmake(tmp_path / "build", stub, "-DPLATFORM=SKX", source=checkout).returncode == 0
    assert program.exists()
    (checkout / "native" / "peak.c").write_text("int main(void) { return nothing; }")
    done = run_cmake(tmp_path / "build", stub, "-DPLATFORM=SKX", source=checkout)
    assert done.returncode == 0, done.stderr
    assert "Utilization: left out, as native/peak.c could not be compiled" in done.stdout
    assert "nothing" in done.stdout
    assert not program.exists()
    assert "CNNBENCH_PEAK" not in (tmp_path / "build" / "workload" / NAME / "CTestTestfile.cmake").read_text()


@pytest.mark.parametrize(("compiler", "why"), [("/no/such", "No such file or directory"), ("/bin/false", "1")])
def test_a_machine_without_a_compiler_can_list_its_cases(tmp_path, stub, compiler, why):
    done = run_cmake(tmp_path, stub, "-DPLATFORM=SKX", f"-DPEAK_COMPILER={compiler}")
    assert done.returncode == 0, done.stderr
    assert f"apt-get install gcc libc6-dev) and configure anew ({compiler}: {why})" in done.stdout
    assert len(_listed(tmp_path)) == 5


def test_a_machine_without_a_build_tool_can_list_its_cases(tmp_path, stub, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "uname"):
        (tools / name).symlink_to(shutil.which(name))
    cmake = find_tool("cmake")
    monkeypatch.setattr("cmake_build.find_tool", lambda name: cmake)
    monkeypatch.setenv("PATH", str(tools))
    done = run_cmake(tmp_path / "build", stub, "-DPLATFORM=SKX", "-GUnix Makefiles")
    monkeypatch.undo()
    assert done.returncode == 0, done.stderr
    assert len(_listed(tmp_path / "build")) == 5


def test_the_platform_is_detected_and_a_given_one_normalised(tmp_path, stub):
    assert run_cmake(tmp_path / "detected", stub).returncode == 0
    detected = re.search(r"^PLATFORM:STRING=(.+)$", (tmp_path / "detected/CMakeCache.txt").read_text(), re.MULTILINE)
    assert detected[1] in {platform.code for platform in load_platforms()}
    assert "Platform: ICX" in run_cmake(tmp_path / "given", stub, "-DPLATFORM=icx").stdout


@pytest.mark.parametrize(
    ("option", "needed"),
    [
        ("PLATFORM=FOO", ["PLATFORM=FOO", "GNR, SPR, EMR", "GENERIC"]),
        ("BACKEND=cloud", ["BACKEND=cloud", "must be one of docker, native"]),
        ("BENCHMARK=^VGG", ["BENCHMARK=^VGG", NAME]),
        ("TIMEOUT=0", ["TIMEOUT=0", "must be RUN or RUN,PULL, each a positive whole number of seconds"]),
        *((f"TIMEOUT={bad}", [f"TIMEOUT={bad}", "28800,3600"]) for bad in ("1h", "1.5", "-1", "60,", "60,0", ",60")),
        ("TIMEOUT=60,30,10", ["TIMEOUT=60,30,10", "28800,3600"]),
        ("CNNBENCH_PYTHON=/no/python", ["/no/python", "no such file"]),
    ],
)
def test_a_bad_option_says_what_is_accepted_and_does_not_stay(tmp_path, stub, option, needed):
    failed = run_cmake(tmp_path, stub, f"-D{option}")
    assert failed.returncode != 0
    assert all(text in failed.stderr for text in needed), failed.stderr
    assert run_cmake(tmp_path, stub, "-DPLATFORM=SKX").returncode == 0


@pytest.mark.parametrize(
    ("option", "needed"),
    [
        ("RELEASE=a b", "RELEASE=a b: must be a tag"),
        ("REGISTRY=http://host", "REGISTRY=http://host: must be a host"),
        ("DATASET_FROM=tape", "DATASET_FROM=tape: must be one of embedded, local, url"),
        ("MODELS=vgg", "MODELS=vgg: vgg is not known"),
    ],
)
def test_a_bad_option_of_the_docker_backend_says_what_is_accepted(tmp_path, stub, option, needed):
    failed = run_cmake(tmp_path, stub, "-DBACKEND=docker", "-DPLATFORM=SKX", f"-D{option}")
    assert failed.returncode != 0
    assert needed in failed.stderr, failed.stderr


def test_the_docker_backend_lists_its_cases_without_an_engine(tmp_path, stub):
    done = run_cmake(tmp_path, stub, "-DBACKEND=docker", "-DPLATFORM=SKX", "-DCONTAINER_CLI=no-such-engine")
    assert done.returncode == 0, done.stderr
    assert len(_listed(tmp_path)) == 5
    assert not (tmp_path / "cnnbench-peak").exists()  # the images have their own


def test_benchmark_filters_by_name(tmp_path, stub):
    assert run_cmake(tmp_path, stub, "-DPLATFORM=SKX", "-DBENCHMARK=ResNet50").returncode == 0
    assert len(_listed(tmp_path)) == 5


@pytest.fixture
def checkout(tmp_path):
    """A copy of what cmake reads, to be spoilt."""
    source = tmp_path / "it's a checkout"
    for name in ("cmake", "native", "workload"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "CMakeLists.txt", source)
    return source


def test_a_workload_without_the_platform_says_so(tmp_path, stub, checkout):
    (checkout / "workload" / NAME / "cmake" / "SRF.cmake").unlink()
    failed = run_cmake(tmp_path / "build", stub, "-DPLATFORM=SRF", source=checkout)
    assert failed.returncode != 0
    assert f"{NAME}: not available on PLATFORM=SRF" in failed.stderr
    assert "SPR" in failed.stderr


def test_a_new_slug_is_taken_over(tmp_path, stub, checkout):
    settings = checkout / "workload" / NAME / "workload.yaml"
    settings.write_text(re.sub(r"^slug: .*$", "slug: Not Good", settings.read_text(), flags=re.MULTILINE))
    failed = run_cmake(tmp_path / "build", stub, "-DPLATFORM=SPR", source=checkout)
    assert failed.returncode != 0
    assert "workload.yaml" in failed.stderr
    settings.write_text(settings.read_text().replace("Not Good", "other"))
    assert run_cmake(tmp_path / "build", stub, "-DPLATFORM=SPR", source=checkout).returncode == 0
    script = tmp_path / "build" / "workload" / NAME / "ctest.sh"
    listing = subprocess.run([script, "-N"], capture_output=True, text=True, check=True).stdout
    assert "Test  #1: test_other_inference_throughput_amx_bfloat16\n" in listing


def _write_setup(checkout, body):
    script = checkout / "script" / "setup.sh"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return checkout / ".venv" / "bin" / "python"


def test_the_default_python_is_made_by_setup_sh(tmp_path, stub, checkout):
    python = _write_setup(checkout, f'cd "$(dirname "$0")/.." && mkdir -p .venv/bin && cp "{stub}" .venv/bin/python')
    done = run_cmake(tmp_path / "build", python, "-DPLATFORM=SKX", source=checkout)
    assert done.returncode == 0, done.stderr
    assert len(_listed(tmp_path / "build")) == 5


def test_a_setup_that_fails_shows_its_output(tmp_path, checkout):
    python = _write_setup(checkout, "echo 'No matching distribution'; exit 3")
    failed = run_cmake(tmp_path / "build", python, "-DPLATFORM=SKX", source=checkout)
    assert failed.returncode != 0
    assert "exit 3" in failed.stderr
    assert "No matching distribution" in failed.stderr
