"""Batch jobs on disk expire, and stay cancelled."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from polyvec.server.stores import batch_jobs as batches_module
from polyvec.server.stores.batch_jobs import BatchJobs


def make_lines(number):
    return [{"custom_id": f"line {i}", "body": {"input": f"text {i}"}} for i in range(number)]


def test_a_jobs_files_are_deleted_after_a_day(tmp_path, monkeypatch):
    kept = BatchJobs(tmp_path)
    batch = kept.create("me", "m", {}, make_lines(1))
    assert kept.find("me", batch.id) == batch and kept.next() == batch

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=25)

    monkeypatch.setattr(batches_module, "datetime", Tomorrow)
    assert kept.next() is None and not list(tmp_path.iterdir())


def test_cancelling_and_recording_at_once_never_revive_a_job(tmp_path):
    kept = BatchJobs(tmp_path)
    for _ in range(20):
        batch = kept.create("me", "m", {}, make_lines(100))
        with ThreadPoolExecutor(2) as pool:
            pool.submit(kept.record, batch.id, [b"{}"], [], 1)
            pool.submit(kept.cancel, "me", batch.id)
        found = kept.find("me", batch.id)
        assert found.status == "cancelled"
        assert len(kept.read_file(found, "output").splitlines()) == found.completed
