"""Data larger than memory: order, memory bounds, resuming, and files that change."""

import json
from itertools import islice, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from polyvec.records import BadRow, Block, Columns, as_text
from polyvec.train.data.shuffling import check_files, group_rows, shuffle_files, shuffle_rows

COLUMNS = Columns(needed={"text": as_text})
NUM_ROWS = 5_000


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """5,000 numbered texts, half in Parquet, half in JSON lines."""
    texts = [str(i) for i in range(NUM_ROWS)]
    half = NUM_ROWS // 2
    pq.write_table(pa.table({"text": texts[:half]}), tmp_path / "a.parquet", row_group_size=300)
    lines = [json.dumps({"text": text}) + "\n" for text in texts[half:]]
    (tmp_path / "b.jsonl").write_text("".join(lines))
    return [tmp_path / "a.parquet", tmp_path / "b.jsonl"]


def numbers(rows, count: int) -> list[int]:
    return [int(row["text"]) for row in islice(rows, count)]


def test_a_pass_reads_every_row_once_in_random_order(files: list[Path]) -> None:
    rows = shuffle_files(files, COLUMNS, seed=0, window=2_000)
    first, second = numbers(rows, NUM_ROWS), numbers(rows, NUM_ROWS)
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))
    assert first != second
    # Neighbours come from far apart, not from within one block.
    gaps = [abs(a - b) for a, b in pairwise(first)]
    assert sum(gaps) / len(gaps) > 300


def test_the_order_is_a_function_of_the_seed(files: list[Path]) -> None:
    one, same, other = (
        numbers(shuffle_files(files, COLUMNS, seed=seed, window=2_000), 500) for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize("start", [1, 1_999, 4_999, 5_000, 12_345])
def test_a_resumed_run_reads_what_the_uninterrupted_one_would(
    start: int, files: list[Path]
) -> None:
    whole = numbers(shuffle_files(files, COLUMNS, seed=3, window=700), start + 300)
    resumed = numbers(shuffle_files(files, COLUMNS, seed=3, window=700, start=start), 300)
    assert resumed == whole[start:]


def test_a_start_reads_nothing_of_earlier_windows(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = Block.read

    def counted(block: Block, columns: Columns):
        read.append(block.size)
        return original(block, columns)

    monkeypatch.setattr(Block, "read", counted)
    next(shuffle_files(files, COLUMNS, seed=0, window=1_000, start=20 * NUM_ROWS + 10))
    assert sum(read) < 2_000


def test_memory_holds_one_window_and_one_block(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = Block.read
    monkeypatch.setattr(
        Block, "read", lambda block, columns: read.append(block.size) or original(block, columns)
    )
    rows = shuffle_files(files, COLUMNS, seed=0, window=900)
    ahead = []
    for taken in range(NUM_ROWS):
        next(rows)
        ahead.append(sum(read) - taken)
    assert max(ahead) <= 900 + 1_000


def test_a_bad_row_keeps_its_place_and_is_reported(files: list[Path]) -> None:
    """The rows after it keep their places, so that steps have the same rows."""
    before = numbers(shuffle_files(files, COLUMNS, seed=0, window=700), NUM_ROWS)
    lines = files[1].read_text().splitlines()
    lines[7] = "{"
    files[1].write_text("\n".join(lines))
    bad: list[BadRow] = []
    rows = shuffle_files(files, COLUMNS, seed=0, window=700, report=bad.append)
    after = [row and int(row["text"]) for row in islice(rows, NUM_ROWS)]
    assert [number for number in before if number != NUM_ROWS // 2 + 7] == [
        number for number in after if number is not None
    ]
    assert after.index(None) == before.index(NUM_ROWS // 2 + 7)
    assert [(row.file, row.number) for row in bad] == [(str(files[1]), 8)]


def test_groups_skip_bad_rows_and_keep_their_places() -> None:
    rows = iter([{"text": "a"}, None, {"text": "b"}, {"text": "c"}])
    assert list(islice(group_rows(rows, 2), 2)) == [[{"text": "a"}], [{"text": "b"}, {"text": "c"}]]


def test_a_streamed_hugging_face_data_set_is_read_in_windows() -> None:
    stream = Dataset.from_list([{"text": str(i)} for i in range(1_000)]).to_iterable_dataset()
    whole = numbers(shuffle_rows(stream, COLUMNS, seed=0, window=256), 2_500)
    assert sorted(whole[:1_000]) == list(range(1_000))
    assert max(whole[:256]) == 255
    assert whole[:256] != sorted(whole[:256])
    resumed = numbers(shuffle_rows(stream, COLUMNS, seed=0, window=256, start=1_300), 200)
    assert resumed == whole[1_300:1_500]


def test_rows_that_can_be_read_only_once_are_refused_when_they_end() -> None:
    rows = shuffle_rows(iter([{"text": "a"}]), COLUMNS, seed=0)
    next(rows)
    with pytest.raises(ValueError, match="only once"):
        next(rows)


def test_csv_and_missing_files_are_refused_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write it as Parquet"):
        shuffle_files([tmp_path / "rows.csv"], COLUMNS, seed=0)
    with pytest.raises(ValueError, match=r"there is no file .*rows\.jsonl"):
        shuffle_files([tmp_path / "rows.jsonl"], COLUMNS, seed=0)


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (lambda files: files[1].unlink(), "there is no file .*b.jsonl"),
        (lambda files: files[1].write_text("{}\n"), "b.jsonl has changed"),
        (lambda files: files.pop(), "b.jsonl is no longer read"),
    ],
)
def test_files_other_than_those_of_the_first_start_are_refused(
    harm, part: str, files: list[Path], tmp_path: Path
) -> None:
    record = tmp_path / "run/data.json"
    check_files(record, files)
    check_files(record, files)
    harm(files)
    with pytest.raises(ValueError, match=part):
        check_files(record, files)


def test_a_changed_byte_is_detected_although_the_size_is_equal(
    files: list[Path], tmp_path: Path
) -> None:
    check_files(tmp_path / "data.json", files)
    content = files[0].read_bytes()
    files[0].write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match=r"a\.parquet has changed"):
        check_files(tmp_path / "data.json", files)
