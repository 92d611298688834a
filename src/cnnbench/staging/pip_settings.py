"""Hand uv what pip is configured with: closed networks set pip's options, and uv reads none of them."""

import ast
import importlib.util
import math
import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cnnbench.base.errors import CnnbenchError
from cnnbench.base.start import PLACES

_KEPT = ("UV_CACHE_DIR", "UV_NO_CACHE", "UV_LINK_MODE", "UV_CONCURRENT_")
"""How the variables of uv's own begin that are left as the caller has them: where it stores, and how much at once."""

_SECTIONS = ("global", "install", ":env:")
"""Whose options `pip install` takes, a later section's over an earlier one's."""

_OTHER_NAMES = {"default-timeout": "timeout", "pypi-url": "index-url"}
_FALSE = ("0", "f", "false", "n", "no", "off")


def read_pip_options() -> dict[str, str]:
    """Return the options that `pip install` has from its files and the environment, by their long names.

    None where this Python has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        return {}
    command = [sys.executable, "-I", "-m", "pip", "config", "list", "--disable-pip-version-check"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CnnbenchError(f"`{' '.join(command)}` failed; mend pip's configuration:\n{done.stderr.strip()}")
    found = dict(re.findall(r"^(\S+?)=('.*'|\".*\")$", done.stdout, re.MULTILINE))
    options = {}
    for section in _SECTIONS:
        for key, value in found.items():
            if key.startswith(f"{section}.") and (text := ast.literal_eval(value).strip()):
                name = key.removeprefix(f"{section}.")
                options[_OTHER_NAMES.get(name, name)] = text
    return options


def uv_environment(options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for uv that makes it look where pip would, in the same way.

    In variables and not as arguments, as an index's address may have a password. Other variables for uv are dropped, as
    are those that lead Python to other packages.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in PLACES and (not name.startswith("UV_") or name.startswith(_KEPT))
    }
    found = {
        "UV_DEFAULT_INDEX": options.get("index-url", ""),
        "UV_INDEX": " ".join(options.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(_expand(word) for word in options.get("find-links", "").split()),
        "UV_NO_INDEX": "1" if options.get("no-index", "0").lower() not in _FALSE else "",
        "UV_INSECURE_HOST": " ".join(options.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": f"{math.ceil(float(options['timeout']))}" if "timeout" in options else "",
        "UV_HTTP_RETRIES": options.get("retries", ""),
        "UV_KEYRING_PROVIDER": "subprocess" if options.get("keyring-provider") == "subprocess" else "",
        "SSL_CLIENT_CERT": options.get("client-cert", ""),
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), options.get("proxy", "")),
        **_certificates(options, environ),
        # As pip: any index may have the file. Its hash says whether it is the right one.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    return kept | {name: value for name, value in found.items() if value}


def has_local_places(options: Mapping[str, str]) -> bool:
    """Say whether pip looks into directories too, so that a network that is not there need not matter."""
    indexes = (options.get("index-url", ""), *options.get("extra-index-url", "").split())
    return bool(options.get("find-links")) or any(index.startswith("file:") for index in indexes)


def _expand(word: str) -> str:
    return str(Path(word).expanduser()) if word.startswith("~") else word


def _certificates(options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for the certificates that pip trusts: those it is told of, else the system's."""
    told = (options.get("cert"), environ.get("REQUESTS_CA_BUNDLE"), environ.get("CURL_CA_BUNDLE"))
    if chosen := next(filter(None, told), None):
        return {"SSL_CERT_DIR" if Path(chosen).is_dir() else "SSL_CERT_FILE": chosen}
    if environ.get("SSL_CERT_FILE") or environ.get("SSL_CERT_DIR"):
        return {}
    system = ssl.get_default_verify_paths()
    return {"UV_SYSTEM_CERTS": "1"} if system.cafile or system.capath else {}
