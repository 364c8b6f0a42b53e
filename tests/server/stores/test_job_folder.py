"""Files of a job that are not as the server has left them are that job's trouble alone."""

import json
import os

import pytest

from polyvec.server.stores import job_folder
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.job_folder import DamagedJob, read_lines


def make_lines(number):
    return [{"custom_id": f"line {i}", "body": {"input": f"text {i}"}} for i in range(number)]


def change(folder, **fields):
    state = json.loads((folder / "job.json").read_text("utf-8"))
    (folder / "job.json").write_text(json.dumps(state | fields), "utf-8")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "empty": lambda folder: (folder / "job.json").write_bytes(b""),
    "truncated": lambda folder: os.truncate(folder / "job.json", 40),
    "not UTF-8": lambda folder: (folder / "job.json").write_bytes(b"\xff\xfe\x00"),
    "a list": lambda folder: (folder / "job.json").write_bytes(b"[]"),
    "deep": lambda folder: (folder / "job.json").write_bytes(b'{"a":' * 90_000),
    "huge": lambda folder: (folder / "job.json").write_bytes(b" " * 2_000_000),
    "missing": lambda folder: (folder / "job.json").unlink(),
    "a folder": lambda folder: replace_by_folder(folder / "job.json"),
    "a pipe": lambda folder: replace_by_pipe(folder / "job.json"),
    "an unknown status": lambda folder: change(folder, status="resting"),
    "a wrong type": lambda folder: change(folder, completed="0"),
    "a boolean": lambda folder: change(folder, total=True),
    "a missing field": lambda folder: (folder / "job.json").write_text("{}"),
    "another id": lambda folder: change(folder, id="../../elsewhere"),
    "no time": lambda folder: change(folder, created="yesterday"),
    "no time zone": lambda folder: change(folder, created="2020-01-01T00:00:00"),
    "the far future": lambda folder: change(folder, created="9999-12-31T23:59:59+00:00"),
    "a negative number": lambda folder: change(folder, input_offset=-1),
    "more answers than lines": lambda folder: change(folder, completed=9),
    "no line": lambda folder: change(folder, total=0),
    "completed too early": lambda folder: change(folder, status="completed"),
    "answers that are not there": lambda folder: change(folder, output_bytes=10**30),
    "no output": lambda folder: (folder / "output.jsonl").unlink(),
    "output that is a folder": lambda folder: replace_by_folder(folder / "output.jsonl"),
}


def test_a_damaged_job_is_set_aside_with_a_reason_and_the_others_go_on(tmp_path, caplog):
    kept = BatchJobs(tmp_path)
    # An owner that cannot be read any more counts as the client of a server without keys.
    damaged = {name: kept.create("anyone", "m", {}, make_lines(3)).id for name in DAMAGES}
    healthy = kept.create("anyone", "m", {}, make_lines(3))
    kept.close()
    for name, job_id in damaged.items():
        DAMAGES[name](tmp_path / job_id)
    kept = BatchJobs(tmp_path)
    logged = {json.loads(one.message)["batch_id"]: one.message for one in caplog.records}
    for name, job_id in damaged.items():
        job = kept.find("anyone", job_id)
        assert job.status == "failed", name
        assert job.error and json.dumps(job.error) in logged[job_id], name
        assert list(kept.read_file(job, "output")[1]) == [], name
    assert len(kept.newest("anyone", 1_000)) == len(DAMAGES) + 1
    assert kept.unfinished("anyone") == [healthy]
    for job_id in damaged.values():
        kept.delete("anyone", job_id)
    kept.close()
    assert {path.name for path in tmp_path.iterdir()} == {healthy.id, "lock"}


def test_a_job_that_cannot_be_read_belongs_to_no_key_and_one_that_can_keeps_its_owner(tmp_path):
    kept = BatchJobs(tmp_path)
    unreadable, readable = (kept.create("alice", "m", {}, make_lines(1)).id for _ in range(2))
    kept.close()
    (tmp_path / unreadable / "job.json").write_bytes(b"{")
    change(tmp_path / readable, status="resting")
    kept = BatchJobs(tmp_path)
    assert [job.id for job in kept.newest("alice", 10)] == [readable]
    kept.close()


def test_each_damaged_line_is_a_fault_of_its_own(tmp_path):
    kept = BatchJobs(tmp_path)
    job = kept.create("me", "m", {}, make_lines(7))
    good = b'{"custom_id": "x", "body": {}}\n'
    bad = [b"{\n", b"[1]\n", b'{"custom_id": 1, "body": {}}\n', b'{"custom_id": "a"}\n']
    bad += [b"\xff\n", b"[" * 99_999 + b"\n"]
    (tmp_path / job.id / "input.jsonl").write_bytes(b"".join([*bad, good]))
    lines = kept.read_lines(job)
    while len(lines) < 7:
        # A long line ends a step.
        later = job_folder.replace(job, completed=len(lines), input_offset=lines[-1].end)
        lines += kept.read_lines(later)
    assert [line.damage is None for line in lines] == [False] * 6 + [True]
    assert lines[3].custom_id == "a"
    kept.close()


def test_lines_that_are_not_there_are_damage(tmp_path):
    kept = BatchJobs(tmp_path)
    job = kept.create("me", "m", {}, make_lines(2))
    path = tmp_path / job.id / "input.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    [line] = read_lines(tmp_path / job.id, job)
    answer = job_folder.LineAnswer(line=line, text=b"{}", tokens=1)
    job = kept.record(job.id, [answer])
    with pytest.raises(DamagedJob, match=r"has 1 lines and must have 2"):
        read_lines(tmp_path / job.id, job)
    assert kept.read_lines(job) == []
    assert kept.find("me", job.id).status == "failed"
    kept.close()


def test_a_step_has_a_bounded_number_of_lines_bytes_and_texts(tmp_path):
    kept = BatchJobs(tmp_path)
    many = kept.create("me", "m", {}, make_lines(100))
    assert len(kept.read_lines(many)) == job_folder.STEP_LINES
    long = [{"custom_id": "a", "body": {"input": "a" * 40_000}}] * 5
    assert len(kept.read_lines(kept.create("me", "m", {}, long))) == 2
    wide = [{"custom_id": "a", "body": {"input": ["a"] * 1_500}}] * 5
    assert len(kept.read_lines(kept.create("me", "m", {}, wide))) == 2
    kept.close()
