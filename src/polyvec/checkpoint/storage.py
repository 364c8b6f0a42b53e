"""Files: JSON and safetensors, read with every byte accounted for, written whole or not at all.

A safetensors file is eight bytes of header length, a JSON header, then the tensors. Reading maps
the file into memory, so a tensor costs nothing until it is used. Nothing here runs code from a
file: no pickle, no imports.

Axes in this file: O rows, I columns.
"""

import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float32, Int8

MAX_JSON = 16 * 2**20
"""Bytes of JSON, or of a safetensors header, that are read; the released model's are 80 kB."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I8": np.dtype("i1"),
}
"""The number formats that are read, by their names in a header."""


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """A matrix kept as 8-bit integers, one scale a row: row o is `values[o] * scales[o]`."""

    values: Int8[np.ndarray, "O I"]
    scales: Float32[np.ndarray, " O"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.values.shape

    def to_float(self) -> Float32[np.ndarray, "O I"]:
        """The matrix in float32: a new array, four times as large."""
        return self.values * self.scales[:, None]


def to_float(weight: np.ndarray | Int8Matrix) -> np.ndarray:
    """A weight in float32; the same memory if it is that already."""
    if isinstance(weight, Int8Matrix):
        return weight.to_float()
    return np.ascontiguousarray(weight, np.float32)


class Stored(NamedTuple):
    """A tensor and the file it came from, for error messages."""

    array: np.ndarray
    path: Path


def find_file(folder: Path, name: str) -> Path | None:
    """The regular file `name` of a model folder; None if there is none.

    Raises ValueError where a link leads out of the folder. Hub caches are the exception: there a
    snapshot's files are links into the `blobs` folder beside it.
    """
    path = folder / name
    real, root = path.resolve(), folder.resolve()
    roots = [root]
    for parent in (root, root.parent):
        if parent.parent.name == "snapshots":
            roots.append(parent.parent.parent / "blobs")
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise ValueError(f"{path} leads out of its folder, to {real}; put the file itself there")
    if not path.exists():
        return None
    if not real.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ValueError for a file that is too large, is not UTF-8 or JSON, or is not an object.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path} is {size:,} bytes, more than the {MAX_JSON:,} allowed")
    return _parse_object(path.read_bytes(), str(path))


def _parse_object(raw: bytes, where: str) -> dict[str, Any]:
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


def forget_pages(tensors: Iterable[np.ndarray | Int8Matrix]) -> None:
    """Give back the memory that mapped files hold here; what is read again comes back by itself.

    For those who have read tensors for the last time, to copy them in another form: without it
    the process holds both. Tensors that are not mapped are left alone.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for tensor in tensors:
        base = tensor.values if isinstance(tensor, Int8Matrix) else tensor
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap):
            base.obj.madvise(mmap.MADV_DONTNEED)


def read_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, as views of the mapped file.

    The views are read-only, so their pages can be dropped and read again (`forget_pages`).
    Raises ValueError, naming file and tensor, unless the tensors tile the file exactly.
    """
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path} is {size} bytes, too short for safetensors; download it again")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(mapped[:8], "little")
    if length > min(MAX_JSON, size - 8):
        raise ValueError(
            f"{path} announces a header of {length:,} bytes in a file of {size:,}; "
            "it is cut short or is not safetensors: download it again"
        )
    header = _parse_object(mapped[8 : 8 + length], f"the header of {path}")
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
        # Other writers may leave tensors at odd addresses, which the engines cannot read.
        stored[name] = Stored(array if array.flags.aligned else array.copy(), path)
        end = stop
    if end != len(data):
        raise ValueError(f"{path} has {len(data) - end:,} bytes that belong to no tensor")
    return stored


def _parse_entry(
    entry: object, name: str, path: Path
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of one tensor, which agree with one another."""

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
    tensors: Mapping[str, np.ndarray | Int8Matrix],
    *,
    dtype: np.dtype | None = None,
) -> None:
    """Write a safetensors file, each tensor converted to `dtype` (None keeps its own)."""
    names = {value: key for key, value in DTYPES.items()}

    def kind(tensor: np.ndarray | Int8Matrix) -> np.dtype:
        own = np.dtype(np.float32) if isinstance(tensor, Int8Matrix) else tensor.dtype
        return dtype or own

    # The widest numbers first, so that every tensor starts at a multiple of its own size.
    order = sorted(tensors, key=lambda name: (-kind(tensors[name]).itemsize, name))
    # transformers reads a file only if it says this.
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
            array = tensor.to_float() if isinstance(tensor, Int8Matrix) else tensor
            array = np.ascontiguousarray(array, kind(tensor))
            yield array.reshape(-1).view(np.uint8).data

    write_file(path, parts())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, a key a line."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    write_file(path, [text.encode()])


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file and wait until it is on the disk, so that no rename can overtake it."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place if the block succeeds.

    Whatever goes wrong, the old checkpoint stays as it was and no partial one is left.
    Raises ValueError rather than replace a folder that holds anything but a checkpoint.
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
            f"{folder} holds {strange[0]!r}, which is no part of a checkpoint and would be lost; "
            "choose another folder"
        )


def _is_part_of_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return (path / "adapter_config.json").exists()
    return path.suffix in (".json", ".safetensors", ".md")


def check_names(names: Sequence[str], where: str) -> None:
    """Raise ValueError unless every name is that of a file or folder right here.

    `..`, separators, drive letters and hidden files are refused.
    """
    for name in names:
        plain = name.replace("_", "").replace("-", "").replace(".", "")
        if not plain.isalnum() or not plain.isascii() or name.startswith(".") or len(name) > 200:
            raise ValueError(
                f"{where}: {name!r} is not a plain name; use letters, digits, '.', '-' and '_'"
            )
