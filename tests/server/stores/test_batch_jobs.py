"""Batch jobs on disk: each line is answered once, and one folder belongs to one server."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from polyvec.server.errors import ApiError
from polyvec.server.limits import Limits
from polyvec.server.stores import batch_jobs as batches_module
from polyvec.server.stores import job_folder
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.job_folder import LineAnswer


@pytest.fixture
def kept(tmp_path):
    """An empty store."""
    with closing(BatchJobs(tmp_path)) as jobs:
        yield jobs


def make_lines(number):
    return [{"custom_id": f"line {i}", "body": {"input": f"text {i}"}} for i in range(number)]


def answer(lines):
    """An answer to each line; an error for every third one."""
    return [
        LineAnswer(
            line=line,
            text=json.dumps({"custom_id": line.custom_id}).encode(),
            tokens=None if line.number % 3 == 0 else 5,
        )
        for line in lines
    ]


def read_ids(jobs, job):
    """The ids of all lines that are answered, in the order of output and errors."""
    pieces = [b"".join(jobs.read_file(job, name)[1]) for name in ("output", "errors")]
    return [json.loads(line)["custom_id"] for piece in pieces for line in piece.splitlines()]


def test_a_jobs_files_are_deleted_after_a_day(tmp_path, kept, monkeypatch):
    batch = kept.create("me", "m", {}, make_lines(1))
    assert kept.find("me", batch.id) == batch and kept.unfinished("me") == [batch]

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=25)

    monkeypatch.setattr(batches_module, "datetime", Tomorrow)
    with pytest.raises(ApiError, match="not found"):
        kept.find("me", batch.id)
    kept.delete_expired()
    assert kept.unfinished("me") == []
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_cancelling_and_recording_at_once_never_revive_a_job(kept):
    for _ in range(20):
        batch = kept.create("me", "m", {}, make_lines(100))
        answers = answer(kept.read_lines(batch))
        with ThreadPoolExecutor(2) as pool:
            pool.submit(kept.record, batch.id, answers)
            pool.submit(kept.cancel, "me", batch.id)
        found = kept.find("me", batch.id)
        assert found.status == "cancelled"
        assert len(read_ids(kept, found)) == found.done


def test_answers_that_are_recorded_twice_are_stored_once(kept):
    """The caller of the first call was cancelled while a thread still wrote."""
    batch = kept.create("me", "m", {}, make_lines(40))
    answers = answer(kept.read_lines(batch))
    first = kept.record(batch.id, answers)
    assert kept.record(batch.id, answers) == first
    assert len(read_ids(kept, first)) == first.done == 32


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def test_a_server_that_is_killed_at_any_point_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """Every call that changes the disk is the last one once."""
    calls_left = 0

    def killing(call):
        def run(*args, **kwargs):
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0:
                raise Killed
            result = call(*args, **kwargs)
            if calls_left == 1:
                calls_left = 0
                raise Killed
            return result

        return run

    monkeypatch.setattr(job_folder.os, "fsync", killing(os.fsync))
    monkeypatch.setattr(Path, "replace", killing(Path.replace))
    monkeypatch.setattr(Path, "rename", killing(Path.rename))
    num_kills, deadline = 0, 0
    while num_kills == deadline:
        deadline += 1
        folder = tmp_path / str(deadline)
        calls_left, job, counted = deadline, None, set()
        while job is None or not job.is_finished:
            with closing(BatchJobs(folder)) as jobs:
                found = jobs.newest("me", 10)
                assert len(found) <= 1 and all(one.status != "failed" for one in found)
                try:
                    job = found[0] if found else jobs.create("me", "m", {}, make_lines(70))
                    assert counted <= set(job.crashes)
                    while not job.is_finished:
                        jobs.record_crashes(job.id, [job.done])
                        counted = {job.done}
                        lines = jobs.read_lines(job)
                        counted = set()
                        job = jobs.record(job.id, answer(lines))
                except Killed:
                    num_kills += 1
                    if job is not None:
                        with (folder / job.id / "output.jsonl").open("ab") as output:
                            output.write(b'{"custom_id": "line 6')
        with closing(BatchJobs(folder)) as jobs:
            job = jobs.find("me", job.id)
            assert (job.status, job.completed, job.failed) == ("completed", 46, 24)
            assert sorted(read_ids(jobs, job)) == sorted(f"line {i}" for i in range(70))
        assert {path.name for path in folder.iterdir()} == {job.id, "lock"}
    assert num_kills > 10


def test_counts_of_crashes_are_on_disk_until_their_lines_are_answered(tmp_path):
    with closing(BatchJobs(tmp_path)) as jobs:
        batch = jobs.create("me", "m", {}, make_lines(40))
        jobs.record_crashes(batch.id, [0, 1, 35])
        jobs.record_crashes(batch.id, [0])
    with closing(BatchJobs(tmp_path)) as jobs:
        job = jobs.find("me", batch.id)
        assert job.crashes == {0: 2, 1: 1, 35: 1}
        assert jobs.record(job.id, answer(jobs.read_lines(job))).crashes == {35: 1}


def test_a_second_server_on_a_folder_is_refused_with_a_sentence(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(batches_module, "LOCK_SECONDS", 0.1)
    with pytest.raises(ValueError, match=r"in use by another server; give each server"):
        BatchJobs(tmp_path)
    kept.close()
    BatchJobs(tmp_path).close()


HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from polyvec.server.stores.batch_jobs import BatchJobs
if __name__ == "__main__":
    jobs = BatchJobs(Path(sys.argv[1]))
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(300)
"""


def test_engines_that_outlive_a_killed_server_do_not_hold_its_folder(tmp_path):
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    folder = tmp_path / "batches"
    command = [sys.executable, str(script), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(ValueError, match="in use"):
                BatchJobs(folder)
            holder.kill()
            holder.wait()
            os.kill(child, 0)
            BatchJobs(folder).close()
        finally:
            holder.kill()
            os.kill(child, 9)


def test_limits_hold_for_each_owner_alone(tmp_path):
    limits = Limits(unfinished_jobs=2, stored_jobs=4, stored_job_bytes=2_000)

    def refusal(lines=1):
        with pytest.raises(ApiError) as refused:
            jobs.create("red", "m", {}, make_lines(lines))
        assert refused.value.status == 429 and "Retry-After" in refused.value.headers
        return refused.value.message

    with closing(BatchJobs(tmp_path, limits)) as jobs:
        own = [jobs.create("red", "m", {}, make_lines(1)) for _ in range(2)]
        assert "2 unfinished" in refusal()
        jobs.create("blue", "m", {}, make_lines(1))
        for job in own:
            jobs.cancel("red", job.id)
        assert "bytes" in refusal(lines=50)
        own += [jobs.create("red", "m", {}, make_lines(1)) for _ in range(2)]
        jobs.cancel("red", own[2].id)
        assert "delete_files=true" in refusal()
        jobs.delete("red", own[0].id)
        jobs.create("red", "m", {}, make_lines(1))


def test_a_job_that_grows_beyond_the_limit_fails_and_keeps_its_output(tmp_path):
    limit = sum(len(json.dumps(line)) + 1 for line in make_lines(70)) + 1_200
    with closing(BatchJobs(tmp_path, Limits(stored_job_bytes=limit))) as jobs:
        batch = jobs.create("me", "m", {}, make_lines(70))
        jobs.record(batch.id, answer(jobs.read_lines(batch)))
        job = jobs.record(batch.id, answer(jobs.read_lines(jobs.find("me", batch.id))))
        assert job.status == "failed" and f"{limit:,} bytes" in job.error
        assert len(read_ids(jobs, job)) == job.done == 64


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_answers_a_new_job_with_507_and_keeps_nothing_of_it(
    tmp_path, kept, monkeypatch, number
):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(job_folder.os, "fsync", fail)
    with pytest.raises(ApiError, match=os.strerror(number)) as refused:
        kept.create("me", "m", {}, make_lines(1))
    assert refused.value.status == 507
    assert [path.name for path in tmp_path.iterdir()] == ["lock"] and not kept.newest("me", 9)


def test_cancelling_on_a_full_disk_holds_and_is_stored_when_there_is_room(
    tmp_path, kept, monkeypatch
):
    batch = kept.create("me", "m", {}, make_lines(1))

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(job_folder.os, "fsync", fail)
        assert kept.cancel("me", batch.id).status == "cancelled"
        kept.delete_expired()
        assert not kept.unfinished("me")
    kept.delete_expired()
    kept.close()
    with closing(BatchJobs(tmp_path)) as jobs:
        assert jobs.find("me", batch.id).status == "cancelled"


def test_a_deleted_job_has_gone_with_its_files_also_after_a_kill_in_between(
    tmp_path, kept, monkeypatch
):
    first, second = (kept.create("me", "m", {}, make_lines(1)) for _ in range(2))
    kept.delete("me", first.id)

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(batches_module.shutil, "rmtree", kill)
        with pytest.raises(Killed):
            kept.delete("me", second.id)
    kept.close()
    with closing(BatchJobs(tmp_path)) as jobs:
        assert not jobs.newest("me", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_job_of_the_last_version_continues(tmp_path, kept):
    """Its job.json has fewer fields."""
    batch = kept.create("me", "m", {}, make_lines(40))
    job = kept.record(batch.id, answer(kept.read_lines(batch)))
    kept.close()
    path = tmp_path / job.id / "job.json"
    state = json.loads(path.read_text("utf-8"))
    for name in ("input_bytes", "input_offset", "crashes", "error"):
        del state[name]
    path.write_text(json.dumps(state), "utf-8")
    with closing(BatchJobs(tmp_path)) as jobs:
        old = jobs.find("me", job.id)
        job = jobs.record(old.id, answer(jobs.read_lines(old)))
        assert job.status == "completed"
        assert sorted(read_ids(jobs, job)) == sorted(f"line {i}" for i in range(40))
