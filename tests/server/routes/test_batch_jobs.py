"""Batch jobs: every line is answered once, whatever happens to the server."""

import errno
import json
import signal
import time

import httpx
import numpy as np
import pytest

from polyvec.server.api_keys import ApiKey, ApiKeys, hash_key
from polyvec.server.limits import Limits
from polyvec.server.run import make_service
from polyvec.server.stores import batch_jobs as store_module
from tests.processes import start_server, wait_for
from tests.server.conftest import MODEL, check_error, serving
from tests.server.faults import DEATH, faulty_engine


@pytest.fixture(scope="module")
def batch_server(tmp_path_factory):
    """A server with a store of batch jobs and two API keys."""
    known = [ApiKey(name, hash_key(name)) for name in ("alice", "bob")]
    folder = tmp_path_factory.mktemp("batches")
    limits = Limits(unfinished_jobs=3)
    with serving(batches=folder, api_keys=ApiKeys(known), limits=limits) as running:
        running.http.headers["authorization"] = "Bearer alice"
        yield running


def make_lines(number):
    return [{"custom_id": f"line {i}", "body": {"input": f"text {i}"}} for i in range(number)]


def submit(http, lines, **fields):
    answer = http.post("/v1/batch/embeddings", json={"model": MODEL, "input": lines, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait(http, key, *statuses):
    """Wait until the job has one of these statuses, and return it."""
    jobs = []

    def has_come():
        jobs.append(http.get(f"/v1/batch/{key}").json())
        return jobs[-1]["status"] in statuses

    wait_for(has_come)
    return jobs[-1]


def read_lines(http, url):
    answer = http.get(url)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_job_gives_what_its_lines_give_alone(batch_server, library, jina_schema):
    lines = make_lines(70)
    lines[3]["body"] = {"input": ["two", "texts"], "task": "separation", "dimensions": 8}
    lines[5]["body"] = {"input": ""}
    lines[6]["body"] = {"inputs": "misspelt"}
    made = submit(batch_server.http, lines, task="text-matching", dimensions=64)
    jina_schema("BatchStatus", made)
    job = wait(batch_server.http, made["batch_id"], "completed")
    jina_schema("BatchStatus", job)
    stats = job["stats"]
    assert (stats["total"], stats["completed"], stats["failed"]) == (70, 68, 2)
    output = read_lines(batch_server.http, job["output_url"])
    good = {line["custom_id"]: line["response"]["body"] for line in output}
    assert list(good) == [f"line {i}" for i in range(70) if i not in (5, 6)]
    assert stats["total_tokens"] == sum(body["usage"]["total_tokens"] for body in good.values())
    usual = [i for i in range(70) if i not in (3, 5, 6)]
    got = [good[f"line {i}"]["data"][0]["embedding"] for i in usual]
    expected = library.encode([f"text {i}" for i in usual], task="text-matching", dim=64)
    np.testing.assert_allclose(np.float32(got), expected, atol=1e-5)
    assert np.shape([row["embedding"] for row in good["line 3"]["data"]]) == (2, 8)
    errors = read_lines(batch_server.http, job["error_file_url"])
    assert [line["custom_id"] for line in errors] == ["line 5", "line 6"]
    assert "empty" in errors[0]["error"]["message"] and "inputs" in errors[1]["error"]["message"]


def test_a_job_is_its_owners_alone(batch_server):
    key = submit(batch_server.http, make_lines(1))["batch_id"]
    wait(batch_server.http, key, "completed")
    other = {"authorization": "Bearer bob"}
    for path in (f"/v1/batch/{key}", f"/v1/batch/{key}/output", f"/v1/batch/{key}/errors"):
        assert check_error(batch_server.http.get(path, headers=other))[0] == 404
    assert check_error(batch_server.http.delete(f"/v1/batch/{key}", headers=other))[0] == 404
    assert batch_server.http.get("/v1/batches", headers=other).json() == []
    mine = batch_server.http.get("/v1/batches?limit=1").json()
    assert [job["batch_id"] for job in mine] == [key]


def test_a_cancelled_job_keeps_what_was_answered(batch_server):
    key = submit(batch_server.http, make_lines(3_000))["batch_id"]
    wait(batch_server.http, key, "processing")
    job = batch_server.http.delete(f"/v1/batch/{key}").json()
    assert job["status"] == "cancelled" and job["stats"]["completed"] < 3_000
    time.sleep(0.5)
    assert batch_server.http.get(f"/v1/batch/{key}").json() == job
    assert len(read_lines(batch_server.http, job["output_url"])) == job["stats"]["completed"]
    assert check_error(batch_server.http.delete(f"/v1/batch/{key}"))[0] == 409


def test_a_finished_job_is_deleted_on_request_only(batch_server):
    key = submit(batch_server.http, make_lines(1))["batch_id"]
    wait(batch_server.http, key, "completed")
    path = f"/v1/batch/{key}"
    status, sentence = check_error(batch_server.http.delete(path))
    assert (status, "delete_files=true" in sentence) == (409, True)
    assert check_error(batch_server.http.delete(f"{path}?delete_files=yes"))[0] == 400
    other = {"authorization": "Bearer bob"}
    foreign = batch_server.http.delete(f"{path}?delete_files=true", headers=other)
    assert check_error(foreign)[0] == 404
    assert batch_server.http.get(path).status_code == 200
    assert batch_server.http.delete(f"{path}?delete_files=true").json()["batch_id"] == key
    for gone in (path, f"{path}/output", f"{path}/errors"):
        assert check_error(batch_server.http.get(gone))[0] == 404


def test_a_key_with_too_many_unfinished_jobs_is_refused_and_others_are_not(batch_server):
    keys = [submit(batch_server.http, make_lines(2_000))["batch_id"] for _ in range(3)]
    body = {"model": MODEL, "input": make_lines(1)}
    refused = batch_server.http.post("/v1/batch/embeddings", json=body)
    assert check_error(refused)[0] == 429 and refused.headers["retry-after"]
    other = {"authorization": "Bearer bob"}
    made = batch_server.http.post("/v1/batch/embeddings", json=body, headers=other).json()

    def is_completed():
        job = batch_server.http.get(f"/v1/batch/{made['batch_id']}", headers=other).json()
        return job["status"] == "completed"

    wait_for(is_completed)
    first = batch_server.http.get(f"/v1/batch/{keys[0]}").json()
    assert first["status"] != "completed", "the long job did not delay the short one"
    for key in keys:
        assert batch_server.http.delete(f"/v1/batch/{key}").json()["status"] == "cancelled"


def test_a_new_job_on_a_full_disk_is_answered_with_507(batch_server, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "create_folder", fail)
    status, sentence = batch_server.error({"input": make_lines(1)}, path="/v1/batch/embeddings")
    assert (status, "No space" in sentence) == (507, True)


def test_a_job_whose_output_has_gone_is_answered_with_a_reason(batch_server):
    made = submit(batch_server.http, make_lines(1))
    wait(batch_server.http, made["batch_id"], "completed")
    jobs = batch_server.service.batch_jobs
    (jobs._folder / made["batch_id"] / "output.jsonl").unlink()
    status, sentence = check_error(batch_server.http.get(made["output_url"]))
    assert (status, "cannot be read" in sentence) == (404, True)
    assert batch_server.http.get("/v1/batches").status_code == 200


def test_a_second_server_on_the_folder_does_not_start(batch_server, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.1)
    with pytest.raises(ValueError, match="in use by another server"):
        make_service(["mini"], batches=batch_server.service.batch_jobs._folder)


def test_lines_that_end_engines_fail_alone_and_other_requests_are_answered(tmp_path):
    lines = make_lines(40)
    for number in (3, 20):
        lines[number]["body"] = {"input": [[5, 6], [DEATH], [7]]}
    with serving(make_engine=faulty_engine, batches=tmp_path) as server:
        keys = [submit(server.http, lines)["batch_id"], submit(server.http, lines[:2])["batch_id"]]
        codes = set()

        def have_ended():
            codes.add(server.embed("meanwhile").json().get("code"))
            jobs = [server.http.get(f"/v1/batch/{key}").json() for key in keys]
            return all(job["status"] == "completed" for job in jobs)

        wait_for(have_ended)
        job = server.http.get(f"/v1/batch/{keys[0]}").json()
        assert (job["stats"]["completed"], job["stats"]["failed"]) == (38, 2)
        errors = read_lines(server.http, job["error_file_url"])
        assert [line["custom_id"] for line in errors] == ["line 3", "line 20"]
        assert server.read_metrics()["polyvec_engine_restarts_total"] <= 6
        # No request shares a batch with a line.
        assert codes <= {None, "SERVICE_UNAVAILABLE"}
        server.wait_until_ready()
        assert server.embed("afterwards").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "input"),
        ({"input": []}, 422, "input"),
        ({"input": [{"custom_id": "a"}]}, 422, "body"),
        ({"input": make_lines(1) * 2}, 400, "custom_id"),
        ({"input_url": "http://example.org/x"}, 400, "input_url"),
        ({"input": make_lines(1), "webhook_url": "http://example.org/x"}, 400, "webhook_url"),
        ({"input": make_lines(1), "task": "no"}, 400, "task"),
        ({"input": make_lines(1), "model": "no"}, 400, "no"),
    ],
)
def test_a_wrong_job_is_refused_at_once(batch_server, body, status, named):
    got, sentence = batch_server.error(body, path="/v1/batch/embeddings")
    assert (got, named in sentence) == (status, True), sentence


@pytest.mark.parametrize("key", ["..", "batch_" + "0" * 24, "%2e%2e%2fjob", "batch_x"])
def test_an_unknown_job_is_404(batch_server, key):
    assert check_error(batch_server.http.get(f"/v1/batch/{key}"))[0] == 404


def test_jobs_need_a_folder(server):
    assert "--batches" in server.error({"input": make_lines(1)}, path="/v1/batch/embeddings")[1]
    assert check_error(server.http.get("/v1/batches"))[0] == 404


def test_a_killed_server_answers_every_line_once(tmp_path):
    """After SIGKILL and a half-written line, a new server continues the job."""
    lines = make_lines(400)
    process, url = start_server("--batches", str(tmp_path))
    try:
        with httpx.Client(base_url=url, timeout=300) as http:
            key = submit(http, lines, model="polyvec-mini", dimensions=32)["batch_id"]
            wait(http, key, "processing")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (tmp_path / key / "output.jsonl").open("ab") as output:
        output.write(b'{"custom_id": "line 399", "respon')
    process, url = start_server("--batches", str(tmp_path))
    try:
        with httpx.Client(base_url=url, timeout=300) as http:
            job = wait(http, key, "completed")
            output = read_lines(http, job["output_url"])
    finally:
        process.terminate()
        process.wait()
    assert [line["custom_id"] for line in output] == [f"line {i}" for i in range(400)]
