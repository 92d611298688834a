"""Environments made from a lock file of a small wheel made here, which pip is configured to find in all its ways."""

import hashlib
import os
import shutil
import ssl
import subprocess
import threading
import zipfile
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cnnbench.base.errors import CnnbenchError
from cnnbench.staging.installer import environment_of, make_environment
from cnnbench.staging.pip_settings import has_local_places, uv_environment

PASSWORD = "open-sesame"
DEAD = "http://127.0.0.1:9/simple"


def write_wheel(directory, files=()):
    """Write a package of one module, and of more files by their contents."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    content = {
        "tiny/__init__.py": "ANSWER = 42\n",
        **dict(files),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*content, f"{info}/RECORD")))
    return path


def write_index(directory, wheel):
    """Write a simple index of a wheel, to be served or read as a directory."""
    page = directory / "simple" / "tiny" / "index.html"
    page.parent.mkdir(parents=True)
    shutil.copy(wheel, page.parent)
    page.write_text(f'<!DOCTYPE html><a href="{wheel.name}">{wheel.name}</a>\n')
    return directory / "simple"


class Handler(SimpleHTTPRequestHandler):
    """Serves a directory; as a proxy too, and what is below /secret to those with the password only."""

    def do_GET(self):
        secret = b64encode(f"me:{PASSWORD}".encode()).decode()
        self.path = self.path.removeprefix("http://index.invalid")
        if self.path.startswith("/secret"):
            self.path = self.path.removeprefix("/secret")
            if self.headers.get("Authorization") != f"Basic {secret}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Serve a directory on this machine, with TLS where a certificate is given; return the port."""
    servers = []

    def start(directory, certificate=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=directory))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch):
    """Have neither pip nor uv configured."""
    told = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "FORCE_COLOR")
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name in told or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """The lock file of the small wheel, which lies in `wheels`."""
    wheel = write_wheel(tmp_path / "wheels")
    path = tmp_path / "tiny-wheel.lock"
    path.write_text(f"tiny==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return path


def has_tiny(python):
    return subprocess.run([python, "-I", "-c", "import tiny"], capture_output=True, check=False).returncode == 0


def test_pips_configuration_says_where_packages_are(tmp_path, lock, serve, monkeypatch):
    wheels = tmp_path / "wheels"
    index = write_index(tmp_path / "index", wheels / "tiny-1.0-py3-none-any.whl")
    other = write_index(tmp_path / "other", write_wheel(tmp_path / "made-elsewhere", {"tiny/more.py": ""}))
    (tmp_path / "pip.conf").write_text(
        f"[global]\nindex-url = {DEAD}\nno-index = true\n[install]\nno-index = false\nindex-url = {index.as_uri()}\n"
    )
    (tmp_path / "ways.conf").write_text(f"[global]\nno-index = yes\nfind-links =\n  {tmp_path}\n  {wheels}\n")
    port = serve(index.parent)
    ways = {
        "password": {"PIP_INDEX_URL": f"http://me:{PASSWORD}@127.0.0.1:{port}/secret/simple"},
        "second index": {"PIP_INDEX_URL": other.as_uri(), "PIP_EXTRA_INDEX_URL": f"{index.as_uri()}"},
        "directory": {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)},
        "no index answers": {"PIP_INDEX_URL": DEAD, "PIP_FIND_LINKS": str(wheels), "PIP_RETRIES": "0"},
        "file": {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")},
        "file of several lines": {"PIP_CONFIG_FILE": str(tmp_path / "ways.conf")},
        "proxy": {"PIP_INDEX_URL": "http://index.invalid/simple", "PIP_PROXY": f"http://127.0.0.1:{port}"},
        "not uv's": {"PIP_INDEX_URL": index.as_uri(), "UV_EXCLUDE_NEWER": "2001-01-01", "UV_OFFLINE": "maybe"},
    }
    for way, variables in ways.items():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert has_tiny(make_environment(lock, tmp_path / f"cache of {way}")), way


def test_pips_certificates_are_trusted_and_others_are_not(tmp_path, lock, serve, monkeypatch):
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl: not found; it makes a certificate")
    certificate = tmp_path / "certificate.pem"
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-out"]
    made += [certificate, "-keyout", tmp_path / "key.pem", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-addext", "basicConstraints=critical,CA:FALSE"]  # rustls takes no authority's for a server's
    subprocess.run([openssl, *made], check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "key.pem").read_text() + certificate.read_text())
    index = write_index(tmp_path / "index", next((tmp_path / "wheels").iterdir()))
    monkeypatch.setenv("PIP_INDEX_URL", f"https://127.0.0.1:{serve(index.parent, both)}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(CnnbenchError, match="invalid peer certificate"):
        make_environment(lock, tmp_path / "refused")
    for name, value in {
        "PIP_CERT": str(certificate),
        "REQUESTS_CA_BUNDLE": str(certificate),
        "PIP_TRUSTED_HOST": "127.0.0.1",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert has_tiny(make_environment(lock, tmp_path / name)), name


def test_where_pip_finds_nothing_the_frameworks_own_index_is_asked(tmp_path, lock, serve, monkeypatch, capfd):
    index = write_index(tmp_path / "index", next((tmp_path / "wheels").iterdir()))
    url = f"http://127.0.0.1:{serve(index.parent)}/simple"
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    with pytest.raises(CnnbenchError, match="tiny was not found"):
        make_environment(lock, tmp_path / "cache")
    assert has_tiny(make_environment(lock, tmp_path / "cache", url))
    assert f"tiny-wheel.lock: not all of it where pip looks: trying {url} as well" in capfd.readouterr().err


def test_no_password_is_printed(tmp_path, lock, monkeypatch, capfd):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:{PASSWORD}@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(CnnbenchError) as raised:
        make_environment(lock, tmp_path / "cache")
    assert PASSWORD not in str(raised.value) + capfd.readouterr().err


def test_the_directory_that_the_caller_is_in_configures_nothing(tmp_path, lock, monkeypatch):
    (tmp_path / "uv.toml").write_text("no-such-setting = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels")
    assert has_tiny(make_environment(lock, tmp_path / "cache"))


def inodes(directory):
    return {path.stat().st_ino for path in directory.rglob("*.py") if path.parent.name == "tiny"}


def test_environments_are_linked_from_one_store_where_they_can_be(tmp_path, lock, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("HOME", "/proc")  # where nothing can be written
    cache = tmp_path / "cache"
    environment = make_environment(lock, cache).parents[1]
    assert inodes(environment) == inodes(cache / "uv")
    assert list(environment.rglob("tiny/__pycache__/*.pyc"))
    with monkeypatch.context() as patch:
        patch.setenv("UV_NO_CACHE", "1")
        assert has_tiny(make_environment(lock, tmp_path / "another"))
        assert not (tmp_path / "another" / "uv").exists()
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm: no other file system to write to")
    store = memory / f"cnnbench-test-{os.getpid()}"
    monkeypatch.setenv("UV_CACHE_DIR", str(store))
    try:
        capfd.readouterr()
        assert has_tiny(make_environment(lock, tmp_path / "third"))
        assert inodes(store)
    finally:
        shutil.rmtree(store)
    assert "warning" not in capfd.readouterr().err


def test_what_is_done_is_told_a_line_each(tmp_path, lock, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    make_environment(lock, tmp_path / "cache")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "making the environment of tiny-wheel: this downloads and unpacks a framework"
    assert [line.rpartition(" in ")[0] for line in lines[1:]] == [
        "  Prepared 1 package",
        "  Installed 1 package",
        "  Bytecode compiled 1 file",
    ]


def test_a_lean_environment_has_no_headers_static_libraries_or_tests(tmp_path, lock, monkeypatch):
    kept = {"tiny/include/__init__.py": "", "tiny/testing.py": "", "tiny/lib/tiny.so": "x"}
    dropped = {"tiny/core/include/tiny.h": "", "tiny/lib/tiny.a": "x", "tiny/tests/test_tiny.py": ""}
    wheel = write_wheel(tmp_path / "fat", kept | dropped)
    lock.write_text(f"tiny==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "fat"))
    for lean in (False, True):
        python = make_environment(lock, tmp_path / f"lean {lean}", lean=lean)
        (packages,) = python.parents[1].glob("lib/python*/site-packages")
        there = {name for name in kept | dropped if (packages / name).exists()}
        assert there == set(kept) if lean else there == {*kept, *dropped}
        assert has_tiny(python)


def test_an_environment_is_named_after_its_lock(tmp_path, lock):
    first = environment_of(lock, tmp_path)
    lock.write_text("tiny==1.1\n")
    assert environment_of(lock, tmp_path) != first


@pytest.mark.parametrize(
    ("options", "environ", "has"),
    [
        ({"cert": "/a.pem"}, {"SSL_CERT_FILE": "/b.pem"}, {"SSL_CERT_FILE": "/a.pem"}),
        ({"cert": "/"}, {}, {"SSL_CERT_DIR": "/"}),
        ({}, {"CURL_CA_BUNDLE": "/c.pem"}, {"SSL_CERT_FILE": "/c.pem"}),
        ({}, {"SSL_CERT_FILE": "/b.pem"}, {"SSL_CERT_FILE": "/b.pem", "UV_SYSTEM_CERTS": None}),
        ({"client-cert": "/me.pem"}, {}, {"SSL_CLIENT_CERT": "/me.pem"}),
        ({"proxy": "http://p:3128"}, {}, {"HTTPS_PROXY": "http://p:3128", "http_proxy": "http://p:3128"}),
        ({}, {"HTTPS_PROXY": "http://q"}, {"HTTPS_PROXY": "http://q"}),
        ({"timeout": "59.5", "retries": "2"}, {}, {"UV_HTTP_TIMEOUT": "60", "UV_HTTP_RETRIES": "2"}),
        ({"find-links": "a ~/b"}, {}, {"UV_FIND_LINKS": f"a,{Path.home()}/b"}),
        ({"no-index": "false"}, {"UV_INDEX": "http://x"}, {"UV_NO_INDEX": None, "UV_INDEX": None}),
        (
            {},
            {"PYTHONPATH": "/x", "UV_CONCURRENT_DOWNLOADS": "1"},
            {"PYTHONPATH": None, "UV_CONCURRENT_DOWNLOADS": "1"},
        ),
    ],
)
def test_an_option_of_pips_is_one_of_uvs(options, environ, has):
    made = uv_environment(options, environ)
    assert {name: made.get(name) for name in has} == has


def test_places_that_need_no_network():
    assert has_local_places({"find-links": "/wheels"})
    assert has_local_places({"index-url": "https://a/simple", "extra-index-url": "https://b file:///c"})
    assert not has_local_places({"index-url": "https://a/simple"})
