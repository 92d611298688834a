"""Gramine's tools as small scripts: they check how they are called, and an enclave is a process of this machine.

`gramine-sgx` takes arguments and environment from the signed manifest alone, as Gramine does.
"""

import sys
from pathlib import Path

_TOOLS = {
    "gramine-sgx-gen-private-key": """
(key,) = sys.argv[1:]
ours = str(Path(sys.executable).parent)
assert ours not in os.environ["PATH"].split(":"), "tools of the system's Python would not find their packages"
Path(key).write_text("a key")
""",
    "gramine-sgx-sign": """
parser = argparse.ArgumentParser()
parser.add_argument("--quiet", action="store_true", required=True)
for name in ("--key", "--manifest", "--output", "--sigfile"):
    parser.add_argument(name, type=Path, required=True)
words = parser.parse_args()
text = words.manifest.read_text()
tomllib.loads(text)
words.output.write_text(text)
words.sigfile.write_text(hashlib.sha256(words.key.read_bytes() + text.encode()).hexdigest())
""",
    "gramine-sgx-pf-crypt": """
parser = argparse.ArgumentParser()
parser.add_argument("action", choices=["encrypt"])
for name in ("--wrap-key", "--input", "--output"):
    parser.add_argument(name, type=Path, required=True)
words = parser.parse_args()
assert len(words.wrap_key.read_bytes()) == 16
words.output.write_bytes(words.input.read_bytes())
""",
    "gramine-sgx": """
(application,) = sys.argv[1:]
text = Path(f"{application}.manifest.sgx").read_text()
assert Path(f"{application}.sig").read_text()
manifest = tomllib.loads(text)
Path(f"{application}.outside").write_text("".join(f"{name}\\n" for name in sorted(os.environ)))
trusted = {file["uri"]: file["sha256"] for file in manifest["sgx"]["trusted_files"]}
loader = manifest["loader"]
for uri in (loader["entrypoint"]["uri"], f"file:{manifest['libos']['entrypoint']}", f"file:{loader['argv'][3]}"):
    found = hashlib.sha256(Path(uri.removeprefix("file:")).read_bytes()).hexdigest()
    assert trusted[uri] == found, uri
for uri in manifest["sgx"]["allowed_files"]:
    assert Path(uri.partition(":")[2]).exists(), uri
os.execve(manifest["libos"]["entrypoint"], loader["argv"], loader["env"])
""",
}

_PREAMBLE = f"""#!{sys.executable}
import argparse, hashlib, os, sys
from pathlib import Path
try:
    import tomllib
except ImportError:
    import tomli as tomllib
"""


class FakeGramine:
    """An installation below a directory; `bin` belongs on PATH."""

    def __init__(self, root: Path) -> None:
        self.bin, self.libraries = root / "bin", root / "lib" / "x86_64-linux-gnu" / "gramine"
        self.bin.mkdir(parents=True)
        (self.libraries / "runtime" / "glibc").mkdir(parents=True)
        for name in ("libsysdb.so", "runtime/glibc/libc.so.6"):
            (self.libraries / name).write_text(name)
        for name in _TOOLS:
            self.replace(name, _PREAMBLE + _TOOLS[name])

    def replace(self, name: str, script: str) -> None:
        """Put another script in a tool's place."""
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)
