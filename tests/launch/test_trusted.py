import hashlib

import pytest

from cnnbench.launch.trusted import TrustedFile, check_manifest, hash_files, library_files


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "env/lib/include").mkdir(parents=True)
    (tmp_path / "env/lib/a.py").write_text("a")
    (tmp_path / "env/lib/include/a.h").write_text("never read")
    (tmp_path / "env/link.py").symlink_to("lib/a.py")
    (tmp_path / "env/lib64").symlink_to("lib")
    (tmp_path / "env/gone").symlink_to("nowhere")
    (tmp_path / "model.pb").write_bytes(b"weights")
    return tmp_path


def manifest(files):
    entries = [f'{{ uri = "file:{file.path}", sha256 = "{file.sha256}" }},' for file in files]
    return f"sgx.trusted_files = [\n{chr(10).join(entries)}\n]\n"


def test_files_are_hashed_by_the_paths_they_are_opened_by(tree):
    digest = hashlib.sha256(b"a").hexdigest()
    assert hash_files([tree / "model.pb", tree / "env", tree / "env/lib"]) == [
        TrustedFile(tree / "env/lib/a.py", digest),
        TrustedFile(tree / "env/link.py", digest),
        TrustedFile(tree / "model.pb", hashlib.sha256(b"weights").hexdigest()),
    ]


def test_what_is_named_as_unread_is_left_out(tree):
    (tree / "env/lib/site-packages").mkdir()
    (tree / "env/lib/site-packages/b.py").write_text("b")
    assert len(hash_files([tree / "env"])) == 3
    found = hash_files([tree / "env"], [tree / "env/lib/site-packages"])
    assert [file.path for file in found] == [tree / "env/lib/a.py", tree / "env/link.py"]


def test_a_root_that_is_a_link_is_entered(tree):
    assert [file.path for file in hash_files([tree / "env/lib64"])] == [tree / "env/lib64/a.py"]


def test_shared_libraries_are_those_where_the_linker_looks(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("libm.so.6", "libz.so", "notes.txt", "below/plugin.so"):
        (tmp_path / name).write_text("")
    (tmp_path / "libgone.so").symlink_to("nowhere")
    assert library_files([tmp_path]) == [tmp_path / "libm.so.6", tmp_path / "libz.so"]


def test_a_root_that_is_not_there_is_an_error(tree):
    with pytest.raises(FileNotFoundError):
        hash_files([tree / "no"])


def test_a_manifest_of_unchanged_files_is_well(tree):
    assert check_manifest(manifest(hash_files([tree]))) == []


def test_changed_and_missing_files_are_found(tree):
    text = manifest(hash_files([tree]))
    (tree / "env/lib/a.py").write_text("b")
    (tree / "model.pb").unlink()
    changed, link, missing = check_manifest(text)
    assert changed.startswith(f"{tree}/env/lib/a.py: SHA-256 is ")
    assert link.startswith(f"{tree}/env/link.py: SHA-256 is ")
    assert missing == f"{tree}/model.pb: not there"


def test_paths_begin_at_the_root_that_is_given(tree):
    files = [TrustedFile("/env/lib/a.py", hashlib.sha256(b"a").hexdigest())]
    assert check_manifest(manifest(files), tree) == []
    assert check_manifest(manifest(files)) == ["/env/lib/a.py: not there"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "sgx.trusted_files: none"),
        ('sgx.trusted_files = ["file:/bin/sh"]', "file:/bin/sh: has no SHA-256"),
        (f'sgx.trusted_files = [{{ uri = "file:a", sha256 = "{64 * "0"}" }}]', "file:a: needed is file: and an"),
    ],
)
def test_what_is_not_protected_is_a_problem(text, problem):
    assert check_manifest(text)[0].startswith(problem)
