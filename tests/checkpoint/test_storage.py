"""Safetensors files that are damaged, and paths that lead out of the model folder."""

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyvec.checkpoint import load_checkpoint, release_pages, save_checkpoint
from polyvec.checkpoint.storage import find_file
from polyvec.tokenizer import Tokenizer
from tests.checkpoint.conftest import CONFIG, assert_equal, join, random_weights, split


def test_tensors_are_read_only_views_that_survive_the_release_of_their_pages(model: Path):
    weights = load_checkpoint(model)[1]
    table = weights["embeddings.word.weight"]
    assert isinstance(table, np.ndarray)
    assert not table.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        table[:] = 7
    release_pages([*weights.values(), np.ones(3)])
    assert_equal(weights, random_weights())


def test_a_file_cut_anywhere_is_refused(model: Path):
    path = model / "model.safetensors"
    raw = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 500, *range(1000, len(raw), 997), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_checkpoint(model)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ValueError, match="belong to no tensor"):
        load_checkpoint(model)


def test_a_flipped_bit_in_the_header_is_refused_or_changes_nothing(tmp_path: Path):
    config = replace(CONFIG, num_layers=1, tasks=())
    save_checkpoint(tmp_path / "m", config, random_weights(config))
    path = tmp_path / "m" / "model.safetensors"
    raw = path.read_bytes()
    bits = range(0, 8 * (8 + int.from_bytes(raw[:8], "little")), 61)
    refused = 0
    for bit in bits:
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            _, weights = load_checkpoint(tmp_path / "m")
        except ValueError as error:
            assert str(tmp_path) in str(error)
            refused += 1
        else:
            # The bit was in the metadata or in a space.
            assert_equal(weights, random_weights(config))
    assert refused > 0.9 * len(bits)


STRANGE_HEADERS = {
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "no entry": b'{"a": 1}',
    "no shape": b'{"a": {"dtype": "F32"}}',
    "dtype": b'{"a": {"dtype": 4, "shape": [1], "data_offsets": [0, 4]}}',
    "sign": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
    "float": b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
    "infinite": b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
    "one offset": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    "twice": b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "a": {}}',
    "not UTF-8": b'{"a": "' + b"\xff" * 9 + b'"}',
    "many digits": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("header", STRANGE_HEADERS.values(), ids=STRANGE_HEADERS.keys())
def test_a_strange_header_is_refused(model: Path, header: bytes):
    (model / "model.safetensors").write_bytes(join(header, b"\0" * 4))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_checkpoint(model)


def test_a_huge_header_is_refused_before_it_is_read(model: Path):
    path = model / "model.safetensors"
    for length in (2**63, 2**40, 17 * 2**20):
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(2**25)
        with pytest.raises(ValueError, match="announces a header"):
            load_checkpoint(model)


def test_overlapping_tensors_and_gaps_are_refused(model: Path):
    path = model / "model.safetensors"
    header, data = split(path.read_bytes())
    one, two = "encoder.layers.0.norm1.bias", "encoder.layers.0.norm2.bias"
    path.write_bytes(join(header | {one: header[two]}, data))
    with pytest.raises(ValueError, match="overlaps its neighbour or leaves a gap"):
        load_checkpoint(model)
    shifted = {
        name: entry | {"data_offsets": [x + 4 for x in entry["data_offsets"]]}
        for name, entry in header.items()
        if name != "__metadata__"
    }
    path.write_bytes(join(shifted, b"\0" * 4 + data))
    with pytest.raises(ValueError, match="leaves a gap"):
        load_checkpoint(model)


def test_tensors_at_odd_addresses_are_read(model: Path):
    path = model / "model.safetensors"
    header, data = split(path.read_bytes())
    raw = json.dumps(header).encode()
    path.write_bytes(join(raw + b" " * (1 + -len(raw) % 8), data))
    _, weights = load_checkpoint(model)
    assert_equal(weights, random_weights())
    assert all(
        weight.flags.aligned for weight in weights.values() if isinstance(weight, np.ndarray)
    )


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "separation/adapter_model.safetensors"]
)
def test_a_link_cannot_lead_out_of_the_folder(model: Path, name: str):
    outside = model.parent / "outside"
    (model / name).rename(outside)
    (model / name).symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_checkpoint(model)


def test_a_hub_cache_s_links_into_its_blobs_are_followed(model: Path, tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(p for p in model.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(blobs / str(number))
    assert_equal(load_checkpoint(snapshot)[1], random_weights())


def loop(path: Path) -> None:
    other = path.with_name("other")
    other.symlink_to(path.name)
    path.symlink_to(other.name)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):
        server.bind(path.name)


STRANGE_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "loop": (loop, "is a link that leads to itself"),
    "own name": (lambda path: path.symlink_to(path.name), "is a link that leads to itself"),
    "dangling": (lambda path: path.symlink_to("gone"), "is a link to .*gone, which is missing"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "socket": (bind, "is not a regular file"),
    "folder": (Path.mkdir, "is not a regular file"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "leads out of its folder"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "leads out of its folder"),
    "link to a pipe": (
        lambda path: (os.mkfifo(path.with_name("other")), path.symlink_to("other")),
        "is not a regular file",
    ),
}


@pytest.mark.parametrize(("make", "message"), STRANGE_FILES.values(), ids=STRANGE_FILES.keys())
def test_only_regular_files_are_found(tmp_path: Path, make: Callable[[Path], object], message: str):
    """Reading anything else would never end, or would wait for a writer."""
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match=message) as refusal:
        find_file(tmp_path, "config.json")
    assert str(tmp_path / "config.json") in str(refusal.value)


@pytest.mark.parametrize("make", [loop, os.mkfifo])
def test_no_file_of_a_model_is_opened_unless_it_was_found(
    model: Path, make: Callable[[Path], object]
):
    (model / "tokenizer.json").touch()
    names = [str(path.relative_to(model)) for path in model.rglob("*.*") if path.is_file()]
    assert len(names) == 13
    for name in [*names, "heads.safetensors"]:
        path, kept = model / name, model / f"{name}.kept"
        if path.exists():
            path.rename(kept)
        make(path)
        with pytest.raises(ValueError, match=r"itself|regular") as refusal:
            load_checkpoint(model)
            Tokenizer.load(model, 64)
        assert name in str(refusal.value)
        path.unlink()
        path.with_name("other").unlink(missing_ok=True)
        if kept.exists():
            kept.rename(path)


def test_an_adapter_folder_that_links_to_itself_is_refused(model: Path):
    shutil.rmtree(model / "separation")
    loop(model / "separation")
    with pytest.raises(ValueError, match=r"separation.* is a link that leads to itself"):
        load_checkpoint(model)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR])
def test_a_file_that_the_system_does_not_show_is_named_with_the_reason(
    model: Path, monkeypatch: pytest.MonkeyPatch, error: int
):
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.name == "model.safetensors":
            raise OSError(error, os.strerror(error), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(
        ValueError, match=rf"model\.safetensors cannot be read: {os.strerror(error)}"
    ):
        load_checkpoint(model)
