"""JSON and safetensors files: reading accounts for every byte, writing is all or nothing.

A safetensors file is eight bytes with the length of the header, a JSON header, and the tensors.
Reading maps the file into memory, so a tensor costs nothing until it is used. Nothing here runs
code from a file: there is no pickle and no import.
"""

import errno
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from polyvec.checkpoint.quantised import Weight, to_float

MAX_JSON_BYTES = 16 * 2**20
"""Largest JSON file, or safetensors header, that is read. The released model's header has 80 kB."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I8": np.dtype("i1"),
}
"""The number formats that are read, by their names in a header. Files are little-endian."""


class Stored(NamedTuple):
    """A tensor and the file it comes from, which error messages name."""

    array: np.ndarray
    path: Path


def find_file(folder: Path, name: str) -> Path | None:
    """The path of the regular file `name` of a model folder; None if there is none.

    Raises ValueError for a link that leads nowhere or out of the folder. There is one exception: in
    a cache of the Hugging Face hub, a snapshot's files are links into the `blobs` folder beside it.
    """
    path = folder / name
    try:
        # Not `resolve`, which reports a loop in another way in every version of Python.
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a link that leads to itself; put the file there") from None
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    real, root = path.resolve(), folder.resolve()
    roots = [root]
    for parent in (root, root.parent):
        if parent.parent.name == "snapshots":
            roots.append(parent.parent.parent / "blobs")
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise ValueError(f"{path} leads out of its folder, to {real}; put the file itself there")
    if not path.exists():
        if path.is_symlink():
            raise ValueError(f"{path} is a link to {real}, which is missing; put the file there")
        return None
    if not real.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ValueError for a file that is too large, is not UTF-8 or JSON, or is not an object.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is {size:,} bytes, more than the {MAX_JSON_BYTES:,} allowed")
    return parse_object(path.read_bytes(), str(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError, which begins with `where`, if it is anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a key appears twice")
        return keys

    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    # Thousands of nested brackets exhaust the parser's stack.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {error}; download it again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where} must hold a JSON object")
    return data


def release_pages(weights: Iterable[Weight]) -> None:
    """Give memory that mapped files occupy back to the system; pages that are read again return.

    Call it after reading tensors for the last time to copy them in another form. Otherwise the
    process would hold both. Tensors that are not mapped are not touched.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for weight in weights:
        for array in [weight] if isinstance(weight, np.ndarray) else weight.arrays:
            base = array
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap):
                base.obj.madvise(mmap.MADV_DONTNEED)


def read_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, as views of the mapped file.

    The views are read-only, so their pages can be released and read again (`release_pages`).
    Raises ValueError, naming the file and the tensor, unless the tensors fill the file exactly.
    """
    size = path.stat().st_size
    if size < 8:
        raise ValueError(
            f"{path} is {size} bytes, too short for a safetensors file; download it again"
        )
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(mapped[:8], "little")
    if length > min(MAX_JSON_BYTES, size - 8):
        raise ValueError(
            f"{path} announces a header of {length:,} bytes in a file of {size:,}; "
            "it is cut short or is not safetensors: download it again"
        )
    header = parse_object(mapped[8 : 8 + length], f"the header of {path}")
    header.pop("__metadata__", None)
    stored, end = {}, 0
    data = memoryview(mapped)[8 + length :]
    for name, (dtype, shape, start, stop) in sorted(
        ((name, _parse_entry(entry, name, path)) for name, entry in header.items()),
        key=lambda item: item[1][2:],
    ):
        if start != end:
            raise ValueError(f"{path}: tensor {name!r} overlaps its neighbour or leaves a gap")
        if stop > len(data):
            raise ValueError(f"{path} is cut short: tensor {name!r} ends beyond it; download again")
        array = np.frombuffer(data[start:stop], np.uint8).view(dtype).reshape(shape)
        # Other writers may place tensors at unaligned addresses, which the engines cannot read.
        stored[name] = Stored(array if array.flags.aligned else array.copy(), path)
        end = stop
    if end != len(data):
        raise ValueError(f"{path} has {len(data) - end:,} bytes that belong to no tensor")
    return stored


def _parse_entry(
    entry: object, name: str, path: Path
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of one tensor. Raises ValueError unless they agree."""

    def naturals(value: object) -> bool:
        return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**48 for x in value)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{path}: the header's entry for {name!r} is damaged; download again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{path}: tensor {name!r} has dtype {dtype!r}; convert it to one of {', '.join(DTYPES)}"
        )
    if not naturals(shape) or not naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise ValueError(f"{path}: tensor {name!r} has a damaged shape or position; download again")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{path}: tensor {name!r} of shape {shape} does not fill its bytes")
    return DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def write_tensors(
    path: Path,
    tensors: Mapping[str, Weight],
    *,
    dtype: np.dtype | None = None,
) -> None:
    """Write a safetensors file, with each tensor converted to `dtype`; None keeps its own dtype.

    A quantised matrix is written as floating point numbers (see `quantised.to_tensors`).
    """
    names = {value: key for key, value in DTYPES.items()}

    def kind(tensor: Weight) -> np.dtype:
        own = tensor.dtype if isinstance(tensor, np.ndarray) else np.dtype(np.float32)
        return dtype or own

    # The widest numbers come first, so that every tensor starts at a multiple of its own size.
    order = sorted(tensors, key=lambda name: (-kind(tensors[name]).itemsize, name))
    # transformers reads a file only if it has this entry.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        size = math.prod(tensors[name].shape) * kind(tensors[name]).itemsize
        header[name] = {
            "dtype": names[kind(tensors[name])],
            "shape": list(tensors[name].shape),
            "data_offsets": [end, end + size],
        }
        end += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)

    def parts() -> Iterator[bytes | memoryview]:
        yield len(raw).to_bytes(8, "little") + raw
        for name in order:
            tensor = tensors[name]
            array = tensor if isinstance(tensor, np.ndarray) else to_float(tensor)
            array = np.ascontiguousarray(array, kind(tensor))
            yield array.reshape(-1).view(np.uint8).data

    write_file(path, parts())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object with one key per line."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    write_file(path, [text.encode()])


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file and wait until it is on disk, so that a later rename cannot overtake it."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which replaces it if the block succeeds.

    If anything fails, the old checkpoint remains unchanged and no partial one is left. Raises
    ValueError if `folder` holds anything but a checkpoint, which would be lost.
    """
    folder = folder.absolute()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = partial.with_name(partial.name + ".old")
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
        if old.exists() and not folder.exists():
            old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if folder.is_dir() and (not names or "config.json" in names):
        strange = [name for name in names if not _is_part_of_checkpoint(folder / name)]
    else:
        strange = names
    if strange:
        raise ValueError(
            f"{folder} holds {strange[0]!r}, which is not part of a checkpoint and would be lost; "
            "choose another folder"
        )


def _is_part_of_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return (path / "adapter_config.json").exists()
    return path.suffix in (".json", ".safetensors", ".md")


def check_names(names: Sequence[str], where: str) -> None:
    """Raise ValueError unless every name can only be a file or folder inside the model folder.

    `..`, separators, drive letters and hidden files are refused. `where` begins the message.
    """
    for name in names:
        plain = name.replace("_", "").replace("-", "").replace(".", "")
        if not plain.isalnum() or not plain.isascii() or name.startswith(".") or len(name) > 200:
            raise ValueError(
                f"{where}: {name!r} is not a plain name; use letters, digits, '.', '-' and '_'"
            )
