"""The worker goes on whatever one line, one job, one key or the disk does."""

import asyncio
import errno
import json
import os
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from starlette.responses import Response

from polyvec.server import batch_job_worker
from polyvec.server.api_keys import ApiKey, ApiKeys
from polyvec.server.batch_job_worker import EMBEDDINGS_PATH, answer_batch_jobs
from polyvec.server.errors import ApiError, ErrorCode, engine_crashed, out_of_memory
from polyvec.server.fair_queue import TrafficClass
from polyvec.server.service import Endpoint, Service
from polyvec.server.stores import job_folder
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.wire import StrictModel


class Line(StrictModel):
    input: str
    model: Any = None


@pytest.fixture
def jobs(tmp_path):
    """An empty store."""
    with closing(BatchJobs(tmp_path)) as store:
        yield store


def make_lines(*texts):
    return [{"custom_id": str(i), "body": {"input": text}} for i, text in enumerate(texts)]


def make_keys(*names):
    return ApiKeys([ApiKey(name, bytes(32)) for name in names])


@asynccontextmanager
async def working(jobs, answer, api_keys):
    """A worker whose endpoint is a function of the context."""

    async def respond(context):
        await answer(context)
        context.record_usage(texts=1, tokens=3)
        return Response(b"{}")

    endpoint = Endpoint(method="POST", path=EMBEDDINGS_PATH, answer=respond, summary="", reads=Line)
    service = Service(models_by_name={}, endpoints=[endpoint], api_keys=api_keys, batch_jobs=jobs)
    task = asyncio.create_task(answer_batch_jobs(service))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def run(jobs, answer, *batches, owner="anyone", api_keys=None):
    """Answer jobs of these lines to their end; return them."""
    made = [jobs.create(owner, "m", {}, lines) for lines in batches]

    async def work():
        async with working(jobs, answer, api_keys or ApiKeys()):
            await until(lambda: not jobs.owners())

    asyncio.run(work())
    return [jobs.find(owner, job.id) for job in made]


def read(jobs, job, name):
    text = b"".join(jobs.read_file(job, name)[1])
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


class FakeEngine:
    """Answers all requests that wait as one batch, and dies on texts that begin with "poison"."""

    def __init__(self):
        self.batch = []
        self.deaths = []

    async def answer(self, context):
        text = context.body.input
        if context.traffic is TrafficClass.ISOLATED:
            batch = [text]
        else:
            batch = self.batch
            batch.append(text)
            await asyncio.sleep(0.01)
            self.batch = []
        if any(one.startswith("poison") for one in batch):
            if batch[0] is text:
                self.deaths.append(batch)
            raise engine_crashed()


def test_lines_on_which_engines_die_are_errors_after_three_deaths_and_no_others(jobs):
    texts = ["poison a", *(f"text {i}" for i in range(40)), "poison b"]
    engine = FakeEngine()
    first, second, third = run(
        jobs,
        engine.answer,
        make_lines(*texts),
        make_lines("poison c", "good", "poison d"),
        make_lines("good"),
    )
    assert [(job.status, job.completed, job.failed) for job in (first, second, third)] == [
        ("completed", 40, 2),
        ("completed", 1, 2),
        ("completed", 1, 0),
    ]
    errors = read(jobs, first, "errors")
    assert list(errors) == ["0", "41"]
    assert errors["0"]["error"]["code"] == "SERVICE_ENGINE_CRASHED"
    assert "3 times" in errors["0"]["error"]["message"]
    for poison in "abcd":
        assert sum(f"poison {poison}" in batch for batch in engine.deaths) <= 3
    assert len(engine.deaths) <= 12


def test_a_text_that_never_has_enough_memory_is_an_error_after_three_attempts(jobs):
    attempts = []

    async def answer(context):
        attempts.append(context.traffic)
        raise out_of_memory(0)

    [job] = run(jobs, answer, make_lines("a"))
    assert attempts == [TrafficClass.BACKGROUND] * 2 + [TrafficClass.ISOLATED]
    assert read(jobs, job, "errors")["0"]["error"]["code"] == "SERVICE_OUT_OF_MEMORY"


def test_the_number_of_deaths_survives_a_server_that_is_killed_with_its_engine(tmp_path):
    """The server is gone before the other lines of the dead engine's batch are answered."""
    deaths = []

    async def answer(context):
        if context.body.input == "poison":
            deaths.append(context.traffic)
            raise engine_crashed()
        await asyncio.Event().wait()

    with closing(BatchJobs(tmp_path)) as jobs:
        job_id = jobs.create("anyone", "m", {}, make_lines("waits", "poison")).id
    for number in range(1, 3):
        with closing(BatchJobs(tmp_path)) as jobs:

            async def work(jobs=jobs, number=number):
                async with working(jobs, answer, ApiKeys()):
                    await until(lambda: jobs.find("anyone", job_id).crashes == {1: number})

            asyncio.run(work())
    assert deaths == [TrafficClass.BACKGROUND] * 2
    with closing(BatchJobs(tmp_path)) as jobs:

        async def last(context):
            if context.body.input == "poison":
                await answer(context)

        async def finish():
            async with working(jobs, last, ApiKeys()):
                await until(lambda: not jobs.owners())

        asyncio.run(finish())
        job = jobs.find("anyone", job_id)
        assert (job.completed, job.failed) == (1, 1)
    assert deaths[2:] == [TrafficClass.ISOLATED]


@pytest.mark.parametrize("end", ["cancel", "delete", "revoke"])
@pytest.mark.parametrize("waiting", ["for an engine", "for quota"])
def test_a_job_that_is_ended_stops_within_a_second(jobs, end, waiting):
    api_keys = make_keys("me")
    running, started = set(), []

    async def answer(context):
        started.append(context.body.input)
        if waiting == "for quota":
            raise ApiError(
                ErrorCode.RATE_TOKEN_LIMIT_EXCEEDED, "later", headers={"Retry-After": "60"}
            )
        running.add(context.body.input)
        try:
            await asyncio.Event().wait()
        finally:
            running.discard(context.body.input)

    async def work():
        job = jobs.create("me", "m", {}, make_lines(*map(str, range(50))))
        async with working(jobs, answer, api_keys) as task:
            await until(lambda: len(started) == 32)
            if end == "revoke":
                api_keys.known[:] = make_keys("other").known
            else:
                getattr(jobs, end)("me", job.id)
            await until(lambda: not running and not jobs.owners(), seconds=1)
            num_started = len(started)
            next_job = jobs.create("other" if end == "revoke" else "me", "m", {}, make_lines("a"))
            await until(lambda: len(started) > num_started)
            assert started[num_started:] == ["a"] and not task.done()
            jobs.delete(next_job.owner, next_job.id)
        return job

    job = asyncio.run(work())
    if end == "revoke":
        found = jobs.find("me", job.id)
        assert found.status == "failed" and "key" in found.error


def test_jobs_of_unknown_owners_are_not_answered(jobs):
    """A server without keys answers the jobs of its own clients alone."""
    answered = []

    async def answer(context):
        answered.append(context.body.input)

    [foreign] = run(jobs, answer, make_lines("a"), owner="a removed key")
    assert foreign.status == "failed" and not answered
    [own] = run(jobs, answer, make_lines("b"))
    assert own.status == "completed" and answered == ["b"]


def test_a_key_whose_quota_is_exhausted_delays_no_other(jobs):
    async def answer(context):
        if context.api_key.name == "red":
            raise ApiError(
                ErrorCode.RATE_TOKEN_LIMIT_EXCEEDED, "later", headers={"Retry-After": "60"}
            )

    async def work():
        red = jobs.create("red", "m", {}, make_lines(*"abc"))
        blue = jobs.create("blue", "m", {}, make_lines(*"abc"))
        async with working(jobs, answer, make_keys("red", "blue")):
            await until(lambda: jobs.find("blue", blue.id).status == "completed")
        assert jobs.find("red", red.id).done == 0

    asyncio.run(work())


def test_a_job_larger_than_the_quota_finishes_and_a_line_larger_than_it_is_an_error(jobs):
    key = make_keys("me").known[0]
    left = 2

    async def answer(context):
        nonlocal left
        if context.body.input == "too long for the quota":
            raise ApiError(ErrorCode.RATE_TOKEN_LIMIT_EXCEEDED, "more tokens than the limit")
        if not left:
            left = 2
            raise ApiError(
                ErrorCode.RATE_TOKEN_LIMIT_EXCEEDED, "later", headers={"Retry-After": "0.05"}
            )
        left -= 1

    texts = [*map(str, range(40)), "too long for the quota"]
    [job] = run(jobs, answer, make_lines(*texts), owner="me", api_keys=ApiKeys([key]))
    assert (job.status, job.completed, job.failed) == ("completed", 40, 1)
    assert list(read(jobs, job, "output")) == [str(i) for i in range(40)]


def test_damaged_files_end_one_job_or_one_line_and_never_the_worker(jobs, tmp_path):
    async def answer(context):
        if context.body.input == "bug":
            raise KeyError("a mistake of ours")

    good, cut, lost, strange = (
        jobs.create("anyone", "m", {}, make_lines("a", "bug", "c")) for _ in range(4)
    )
    path = tmp_path / cut.id / "input.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / lost.id / "input.jsonl").unlink()
    (tmp_path / strange.id / "errors.jsonl").unlink()
    (tmp_path / strange.id / "errors.jsonl").mkdir()
    run(jobs, answer)
    good, cut, lost, strange = (jobs.find("anyone", job.id) for job in (good, cut, lost, strange))
    assert (good.status, good.completed, good.failed) == ("completed", 2, 1)
    assert read(jobs, good, "errors")["1"]["error"]["code"] == "INTERNAL_ERROR"
    assert (cut.status, cut.completed, cut.failed) == ("completed", 1, 2)
    assert "line 3" in read(jobs, cut, "errors")[None]["error"]["message"]
    assert lost.status == strange.status == "failed"
    assert "input.jsonl" in lost.error and "errors.jsonl" in strange.error


def test_a_job_waits_while_the_disk_is_full_and_then_has_each_line_once(jobs, monkeypatch):
    monkeypatch.setattr(batch_job_worker, "DISK_RETRY_SECONDS", 0.05)
    real, failures = os.fsync, 5

    def fsync(number):
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    async def answer(_):
        monkeypatch.setattr(job_folder.os, "fsync", fsync)

    [job] = run(jobs, answer, make_lines(*map(str, range(100))))
    assert failures == 0 and job.status == "completed"
    text = b"".join(jobs.read_file(job, "output")[1])
    assert [json.loads(line)["custom_id"] for line in text.splitlines()] == [
        str(i) for i in range(100)
    ]
