"""What cases read, over image sets of two images and a preparer that is a small script instead of TensorFlow's."""

import hashlib
import sys

import pytest

from cnnbench.base.cache import digest_file
from cnnbench.base.errors import CnnbenchError, SkippedError
from cnnbench.cli.main import main
from cnnbench.engines.registry import find_engine
from cnnbench.inputs import procedural
from cnnbench.inputs.image_set import write_image_set
from cnnbench.machine.host import CpuInfo
from cnnbench.run.inputs import stage_engine
from cnnbench.staging import inputs
from cnnbench.staging.environments import environment_path
from cnnbench.staging.inputs import (
    PACKAGE,
    digest_sources,
    embedded_model_path,
    find_check_set,
    find_image_set,
    imagenet_path,
    predict_images,
    prepare_model,
    quantize_model,
    stage_embedded_model,
    stage_procedural,
)

ENGINE = find_engine("tensorflow")
BUILD = "itex"
CPU = CpuInfo(vendor=None, flags=frozenset({"avx2", "fma"}))  # without any int8 instructions
PREPARER = f"""#!{sys.executable}
import hashlib, json, os, sys
from pathlib import Path
step, destination = sys.argv[3], Path(sys.argv[-1])
if step == "embedded":
    (destination / "model.pb").write_bytes(b"a model")
    facts = {{"sha256": hashlib.sha256(b"a model").hexdigest()}}
    (destination / "model.json").write_text(json.dumps(facts))
elif step == "predict":
    (destination / "predictions.npy").write_text(sys.argv[4])
elif "quantize" in sys.argv[2]:
    (destination / "int8.pb").write_text(f"{{step}} {{os.environ['PYTHONHASHSEED']}}")
    (destination / "int8.json").write_text(json.dumps({{"calibration": Path(sys.argv[5]).name}}))
else:
    facts = {{"macs_per_image": 7, "batch_norms_folded": 53, "pads_folded": 4, "quantized": False}}
    (destination / "prepared.json").write_text(json.dumps(facts))
"""


def make_set(root, part):
    root.mkdir(parents=True)
    for name in ("1.jpeg", "2.jpeg"):
        (root / name).write_bytes(f"{part} {name}".encode())
    write_image_set(root, [("1.jpeg", 1), ("2.jpeg", 2)], part, part)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache in which all image sets are staged."""
    root = tmp_path / "cache"
    monkeypatch.setenv("CNNBENCH_CACHE", str(root))
    for part in procedural.IMAGES_PER_CLASS:
        make_set(root / "datasets" / f"{procedural.SEED}-{part}", part)
    make_set(imagenet_path(root), "imagenet2012")
    return root


@pytest.fixture
def python(tmp_path, cache, monkeypatch):
    """A script that is the Python of the builds' environments, and of the one that quantises."""
    monkeypatch.setattr("cnnbench.engines.tensorflow.ITEX_PYTHONS", (sys.version_info[:2],))
    path = tmp_path / "python"
    path.write_text(PREPARER)
    path.chmod(0o755)
    for lock in ("tensorflow-itex", "tensorflow-stock", "tensorflow-quantizer"):
        link = environment_path(lock, cache) / "bin" / "python"
        link.parent.mkdir(parents=True)
        link.symlink_to(path)
    return path


def test_the_embedded_model_is_made_once_and_checked_each_time(cache, python):
    path = stage_embedded_model(ENGINE, BUILD, cache)
    assert path == embedded_model_path(ENGINE, cache)
    python.unlink()
    assert stage_embedded_model(ENGINE, BUILD, cache) == path
    path.write_bytes(b"a modem")
    with pytest.raises(CnnbenchError, match=rf"model\.pb: SHA-256 is .*, needed .* remove {path.parent} and stage it"):
        stage_embedded_model(ENGINE, BUILD, cache)


def test_a_prepared_model_is_named_for_the_model_and_the_images(cache, python):
    model, images = stage_embedded_model(ENGINE, BUILD, cache), stage_procedural("validation", cache)
    prepared = prepare_model(model, images.root, ENGINE, BUILD, cache)
    assert prepared.source_sha256 == hashlib.sha256(b"a model").hexdigest()
    assert prepared.graph.parent.name.startswith(f"{prepared.source_sha256[:16]}-{images.sha256[:16]}-")
    assert prepared.macs_per_image == 7


def test_what_is_staged_is_used_without_the_images_it_was_made_with(cache, python):
    model, images = stage_embedded_model(ENGINE, BUILD, cache), stage_procedural("validation", cache)
    prepared = prepare_model(model, images.root, ENGINE, BUILD, cache)
    python.unlink()
    for part in procedural.IMAGES_PER_CLASS:
        (cache / "datasets" / f"{procedural.SEED}-{part}" / "index.csv").unlink()
    assert stage_embedded_model(ENGINE, BUILD, cache) == model
    assert prepare_model(model, find_check_set(cache), ENGINE, BUILD, cache) == prepared
    with pytest.raises(CnnbenchError, match=r"index\.csv is missing.*take the image for real data"):
        find_image_set("procedural", cache)


@pytest.fixture
def prepared(cache, python):
    """A prepared model."""
    images = stage_procedural("validation", cache)
    return prepare_model(stage_embedded_model(ENGINE, BUILD, cache), images.root, ENGINE, BUILD, cache)


def test_a_model_is_quantised_once_for_each_build(cache, python, prepared):
    found = {build: quantize_model(prepared, ENGINE, build, cache).graph for build in ("itex", "stock")}
    assert {build: path.read_text() for build, path in found.items()} == {"itex": "itex 0", "stock": "stock 0"}
    python.unlink()
    again = quantize_model(prepared, ENGINE, "itex", cache)
    assert again.graph == found["itex"]
    assert (again.macs_per_image, again.reference) == (prepared.macs_per_image, prepared.reference)


def test_ranges_come_from_the_calibration_images_whatever_is_measured(cache, python, prepared):
    other = prepare_model(prepared.source, imagenet_path(cache), ENGINE, BUILD, cache)
    quantized = [quantize_model(model, ENGINE, "itex", cache) for model in (prepared, other)]
    assert {model.int8_sha256 for model in quantized} == {digest_file(model.graph) for model in quantized}
    assert {model.calibration for model in quantized} == {f"{procedural.SEED}-calibration"}
    assert len({model.graph for model in quantized}) == 1


def test_another_quantiser_quantises_anew(cache, prepared, tmp_path, monkeypatch):
    before = quantize_model(prepared, ENGINE, "itex", cache).graph
    lock = tmp_path / "another.lock"
    lock.write_text("neural-compressor==2.7")
    monkeypatch.setattr(inputs, "lock_path", lambda name: lock)
    assert quantize_model(prepared, ENGINE, "itex", cache).graph != before


def test_an_image_without_the_int8_graph_says_how_to_have_it(cache, prepared):
    with pytest.raises(SkippedError, match=r"this image has no int8 graph of it for VARIANT=itex.*-DMODELS=NAME"):
        quantize_model(prepared, ENGINE, "itex", cache, in_image=True)
    made = quantize_model(prepared, ENGINE, "itex", cache)
    assert quantize_model(prepared, ENGINE, "itex", cache, in_image=True) == made
    assert f"-cp{sys.version_info[0]}{sys.version_info[1]}-" in made.graph.parent.name


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize("int8", [True, False])
def test_an_engine_is_staged_with_int8_graphs_where_they_are_wanted_whatever_the_cpu(cache, int8):
    stage_engine("tensorflow", CPU, cache, int8=int8)
    assert len(list(cache.glob("prepared/*-int8-*/int8.pb"))) == (2 if int8 else 0)
    assert len(list(cache.glob("prepared/*-predictions-*/predictions.npy"))) == int8


@pytest.mark.usefixtures("python", "unsupported_python")
def test_an_engine_is_staged_without_int8_graphs_by_a_python_that_cannot_quantise(cache, capsys):
    stage_engine("tensorflow", CPU, cache)
    assert "no int8 graph is made: quantising a model to int8 needs TensorFlow 2.15" in capsys.readouterr().err
    assert not list(cache.glob("prepared/*-int8-*"))
    assert len(list(cache.glob("prepared/*-predictions-*/predictions.npy"))) == 1


def test_the_float_models_answers_are_recorded_for_each_set(cache, python, prepared):
    sets = find_check_set(cache), imagenet_path(cache)
    found = {predict_images(prepared, images, ENGINE, BUILD, cache).predictions for images in sets}
    assert {path.read_text() for path in found} == {str(prepared.source)}
    assert len(found) == 2


@pytest.mark.parametrize("changed", ENGINE.embeds.sources)
def test_a_changed_source_is_another_digest(tmp_path, changed):
    for file in ENGINE.embeds.sources:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((PACKAGE / file).read_bytes())
    assert digest_sources(ENGINE.embeds, tmp_path) == digest_sources(ENGINE.embeds)
    (tmp_path / changed).write_bytes((PACKAGE / changed).read_bytes() + b"#")
    assert digest_sources(ENGINE.embeds, tmp_path) != digest_sources(ENGINE.embeds)


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("procedural", f"datasets/{procedural.SEED}-calibration"),
        ("procedural", f"datasets/{procedural.SEED}-training"),
        ("procedural", f"datasets/{procedural.SEED}-validation"),
        ("imagenet", "datasets/imagenet2012-validation"),
    ],
)
def test_verify_reads_the_images_again(cache, capsys, name, root):
    assert main(["stage", "--verify", name]) == 0
    image = cache / root / "2.jpeg"
    image.write_bytes(bytes(len(image.read_bytes())))  # of the same size
    assert main(["stage", name]) == 0
    assert main(["stage", "--verify", name]) == 1
    assert f"{cache / root}: SHA-256 is " in capsys.readouterr().err


@pytest.mark.usefixtures("python")
def test_verify_reads_the_embedded_model_again(cache, capsys):
    path = stage_embedded_model(ENGINE, BUILD, cache)
    assert main(["stage", "--verify", "resnet50v1_5"]) == 0
    assert capsys.readouterr().out == f"resnet50v1_5: {path}\n"
    path.write_bytes(b"a modem")
    assert main(["stage", "--verify", "resnet50v1_5"]) == 1
    assert f"{path}: SHA-256 is " in capsys.readouterr().err
