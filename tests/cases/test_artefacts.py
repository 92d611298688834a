import pytest

from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.cases.artefacts import find_artefact, load_artefacts

ENTRY = """
artefacts:
  model:
    file_name: model.pb
    url: https://example.org/model.pb
    sha256: {sha256}
    terms: none
"""


def write(tmp_path, text):
    path = tmp_path / "artefacts.yaml"
    path.write_text(text)
    return path


def test_the_manifest_has_the_figures_of_the_reference_document():
    images = find_artefact("imagenet2012-val")
    assert images.file_name == "ILSVRC2012_img_val.tar"
    assert images.size == 6744924160
    assert images.md5 == "29b22e2961454d5413ddabcf34fc5622"
    assert images.sha256 == "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0"


def test_every_digest_has_its_source():
    artefacts = load_artefacts()
    verified = {name for name, artefact in artefacts.items() if artefact.md5 or artefact.sha256}
    assert verified == {"imagenet2012-val", "imagenet2012-devkit", "resnet50_v1"}
    assert verified == {name for name, artefact in artefacts.items() if artefact.figures_from}
    assert set(artefacts) - verified == {"resnet50v1_5_int8", "resnet50v1_5_int8-v1_8"}


def test_an_unknown_artefact_lists_the_known_ones():
    with pytest.raises(UsageError, match="no such artefact; known: imagenet2012-val"):
        find_artefact("resnet")


@pytest.mark.parametrize(
    "change",
    [
        ("sha256: ", "sha265: "),
        ("https:", "file:"),
        ("model.pb\n    url", "../model.pb\n    url"),
        ("    terms: none", ""),
        ("artefacts:", "artifacts:"),
        ("artefacts:", "artefacts: ]"),
    ],
)
def test_a_faulty_manifest_is_an_error_that_names_it(tmp_path, change):
    text = ENTRY.format(sha256="a" * 64)
    assert list(load_artefacts(write(tmp_path, text))) == ["model"]
    with pytest.raises(CnnbenchError, match=r"artefacts\.yaml"):
        load_artefacts(write(tmp_path, text.replace(*change)))
    with pytest.raises(CnnbenchError, match="sha256"):
        load_artefacts(write(tmp_path, ENTRY.format(sha256="abc")))
