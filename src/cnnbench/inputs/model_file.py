"""Tell by a model file's name and its beginning whether it can be what it is given for; no engine is needed for that.

Whether its contents fit is found by what reads it.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

from cnnbench.base.cache import digest_file
from cnnbench.base.errors import UsageError

CHECKPOINTS = ".safetensors, .npz, .pth or .pt"
PICKLE = b"\x80"
"""How a checkpoint begins that PyTorch wrote before its files were zip archives."""

GRAPH_FIELDS = {1: 2, 2: 2, 3: 0, 4: 2, 5: 2}
"""The fields of TensorFlow's GraphDef, and how each is written: 2 is a length and so many bytes, 0 a number."""

LOCATION = re.compile(rb"\x0a\x08location\x12")
"""How ONNX's protobuf begins the name of a file that has a tensor's numbers."""


def check_checkpoint(path: Path) -> None:
    """Raise UsageError for a checkpoint that is not there, not readable, or none that its name promises."""
    given = f"WEIGHTS={path}"
    if not path.is_file():
        raise UsageError(f"{given}: no such file; give a {CHECKPOINTS} file")
    if path.suffix not in (".safetensors", ".npz", ".pth", ".pt"):
        raise UsageError(f"{given}: its format is not known by its name; give a {CHECKPOINTS} file")
    with _open(path, given) as file:
        if path.suffix == ".safetensors" and (problem := _safetensors_problem(file)):
            raise UsageError(f"{given}: not a whole safetensors file ({problem}); fetch it again")
        if path.suffix == ".npz" and not zipfile.is_zipfile(file):
            raise UsageError(f"{given}: not a whole file of NumPy's arrays by name; write it by numpy.savez")
        if path.suffix in (".pth", ".pt") and file.read(1) != PICKLE and not zipfile.is_zipfile(file):
            raise UsageError(
                f"{given}: not a file of tensors alone that PyTorch wrote (neither a zip archive nor a pickle); save "
                "the network's state_dict() by itself"
            )


def check_graph(path: Path) -> None:
    """Raise UsageError for a frozen graph that is not there, not readable, or not whole."""
    given = f"MODEL={path}"
    if not path.is_file():
        raise UsageError(f"{given}: no such file; needed a frozen graph (.pb)")
    with _open(path, given) as file:
        if not _is_graph(file):
            raise UsageError(f"{given}: not a frozen TensorFlow graph, or cut off; give a frozen graph (.pb)")


def digest_onnx(path: Path) -> str:
    """Return the SHA-256 of an ONNX file; where its numbers lie in other files, of all their digests.

    Whether these are there, and what is needed, is found by what reads the file.
    """
    content = path.read_bytes()
    digest, names = hashlib.sha256(content), set()
    for found in LOCATION.finditer(content):
        rest = io.BytesIO(content[found.end() : found.end() + os.pathconf(path.parent, "PC_PATH_MAX")])
        names.add(os.fsdecode(rest.read(_read_number(rest))))
    for name in sorted(names):
        if (path.parent / name).is_file():
            digest.update(f" {name} {digest_file(path.parent / name)}".encode())
    return digest.hexdigest()


def _open(path: Path, given: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{given}: cannot be read ({error.strerror}); give a file that you may read") from error


def _safetensors_problem(file: BinaryIO) -> str:
    """Say what is wrong with a file of a length (8 bytes), so long a header of JSON, and the tensors it tells of."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        return "its header is cut off"
    try:
        header = json.loads(file.read(length))
        ends = [fields["data_offsets"][1] for name, fields in header.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, AttributeError, LookupError, TypeError):
        return "its header is none"
    return "" if size == needed else f"it has {size} bytes, and its header tells of {needed}"


def _is_graph(file: BinaryIO) -> bool:
    """Tell whether a file is a sequence of a GraphDef's fields to its end, with a node among them."""
    size, nodes = os.fstat(file.fileno()).st_size, 0
    while file.tell() < size:
        field, kind = divmod(_read_number(file), 8)
        if GRAPH_FIELDS.get(field) != kind:
            return False
        number = _read_number(file)
        if kind == 2:
            file.seek(number, os.SEEK_CUR)
        nodes += field == 1
    return nodes > 0 and file.tell() == size


def _read_number(file: BinaryIO) -> int:
    """Return a number of protobuf's: 7 bits of each byte, the lowest first, up to one that is below 128."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1) or b"\0"
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            break
    return number
