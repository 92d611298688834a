"""What the controller does with an SGX case before it starts a container; a script stands for the container engine."""

import shlex

import pytest

from checkout import WORKLOAD
from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.run.container import FILES, ContainerOptions, ContainerRun
from cnnbench.run.images import ImageOptions
from cnnbench.run.job import plan_case
from sgx_host import SgxHost

PREFIX = "test_resnet50v1_5_tensorflow_xeon_public_"
CASE = f"{PREFIX}sgx_inference_throughput_avx_fp32"
IMAGE = "ai-resnet50v1_5-tensorflow-intel-public-inference-sgx:latest"

_ENGINE = """#!/bin/sh
echo "$*" >> {root}/calls
case "$1 $2" in
  "ps --all" | "network ls") ;;
  "images --quiet") cat {root}/images ;;
  "inspect --type") cat {root}/label ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""


class Engine:
    """A container engine without images, but those that a test adds."""

    def __init__(self, root):
        self._root, self.host = root, SgxHost(root)
        (root / "images").write_text("")
        self.cli = root / "engine"
        self.cli.write_text(_ENGINE.format(root=shlex.quote(str(root))))
        self.cli.chmod(0o755)

    def add_image(self, gramine):
        (self._root / "images").write_text("0123456789ab\n")
        (self._root / "label").write_text(f"{gramine}\n")

    def run(self, case=CASE, hang_s=None, registry="", **environ):
        options = ContainerOptions([str(self.cli)], ImageOptions(registry), [], hang_s, None)
        planned = plan_case(WORKLOAD, case, environ, {})
        return ContainerRun(planned, options, self._root / "logs", self.host.roots)

    def skip(self, **arguments):
        """Run a case that must be skipped; return the reason."""
        with pytest.raises(SkippedError) as skipped:
            self.run(**arguments).run()
        assert not (self._root / "logs").exists()
        return str(skipped.value)

    @property
    def calls(self):
        return (self._root / "calls").read_text()


@pytest.fixture
def engine(tmp_path):
    return Engine(tmp_path)


def options_of(run, name):
    words = run.command()
    return [words[at + 1] for at, word in enumerate(words) if word == name]


def test_host_and_image_are_told_of_together(engine):
    engine.add_image("none")
    reason = engine.skip()
    assert reason.startswith(f"{CASE}: cannot run in SGX enclaves here: CPU flags sgx and sgx_lc: not in ")
    assert f"{engine.host.roots.device}: not there" in reason
    assert f"image {IMAGE}: made with GRAMINE=none" in reason


def test_what_the_precision_lacks_is_told_too(engine, cpu_flags):
    cpu_flags("avx2 fma avx512f")
    case = f"{PREFIX}sgx_inference_throughput_amx_bfloat16"
    reason = engine.skip(case=case)
    assert "amx_bfloat16: this CPU lacks amx_bf16 and amx_tile" in reason
    assert "sgx_enclave: not there" in reason
    with pytest.raises(CnnbenchError, match=r"amx_bfloat16: this CPU lacks .*; FORCE=True") as forced:
        engine.run(case=case, FORCE="True")
    assert forced.value.exit_code == 1


def test_nothing_is_pulled_for_a_host_without_sgx(engine):
    assert "image" not in engine.skip(registry="host:5000")
    assert "pull" not in engine.calls


def test_an_image_that_is_not_there_is_the_usual_error(engine):
    engine.host.add_everything()
    with pytest.raises(CnnbenchError, match=f"{IMAGE}: no such image; make it with"):
        engine.run().run()


@pytest.mark.parametrize(
    ("label", "missing"),
    [("none", f"image {IMAGE}: made with GRAMINE=none: "), ("", f"image {IMAGE}: has no label cnnbench.gramine: ")],
)
def test_an_image_without_gramine_is_skipped(engine, label, missing):
    engine.host.add_everything()
    engine.add_image(label)
    assert missing in engine.skip()


def test_with_all_that_is_needed_the_run_goes_on(engine):
    engine.host.add_everything()
    engine.add_image("1.7")
    with pytest.raises(CnnbenchError, match="unexpected: version"):  # which facts about the run begin with
        engine.run().run()


def test_a_container_gets_the_device_and_its_group_and_no_more(engine):
    engine.host.add_everything()
    run = engine.run()
    assert options_of(run, "--device") == [str(engine.host.roots.device)]
    assert options_of(run, "--group-add") == [str(engine.host.roots.device.stat().st_gid)]
    assert options_of(run, "--cap-add") == ["SYS_NICE"]
    assert "--privileged" not in run.command()


def test_other_cases_get_neither(engine):
    engine.host.add_everything()
    run = engine.run(case=CASE.replace("sgx_", ""))
    assert options_of(run, "--device") == options_of(run, "--group-add") == []


def test_a_wrap_key_is_mounted_read_only(engine, tmp_path):
    key = tmp_path / "my.key"
    key.write_bytes(bytes(16))
    run = engine.run(WRAP_KEY=str(key))
    assert options_of(run, "--mount") == [f"type=bind,source={key},destination={FILES['WRAP_KEY']},readonly"]
    assert f"WRAP_KEY={FILES['WRAP_KEY']}" in options_of(run, "--env")


def test_the_container_has_its_own_hang_limit_unless_told(engine):
    assert not [word for word in options_of(engine.run(), "--env") if "HANG" in word]
    assert "CNNBENCH_HANG_AFTER=5" in options_of(engine.run(hang_s=5), "--env")
