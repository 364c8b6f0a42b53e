"""A body that is not what it should be is refused in a sentence."""

import json

import pytest

from tests.server.conftest import MODEL


def body(**fields):
    return json.dumps({"model": MODEL, "input": "a"} | fields).encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b'{"model": "m", "input": "\xff\xfe"}', 400, id="not UTF-8"),
        pytest.param(b"[" * 100_000, 400, id="deep"),
        pytest.param(b'{"input":' * 100_000, 400, id="deep objects"),
        pytest.param(b'{"model": "a", "model": "b", "input": "x"}', 400, id="duplicate keys"),
        pytest.param(b'{"model": "a", "input": "x", "dimensions": NaN}', 400, id="NaN"),
        pytest.param(b'{"model": "a", "input": -Infinity}', 400, id="infinity"),
        pytest.param(b'{"model":"a","input":"x","dimensions":1%b}' % (b"0" * 9_999), 400, id="big"),
        pytest.param(body(dimensions=10**30), 422, id="huge"),
        pytest.param(body(dimensions=1e400), 400, id="beyond float"),
        pytest.param(body(late_chunking="yes"), 422, id="text for a boolean"),
        pytest.param(body(surprise=1), 422, id="unknown field"),
        pytest.param(body(input={"text": "a", "image": "b"}), 422, id="an object of another kind"),
        pytest.param(body(input=[1, True]), 422, id="a boolean among ids"),
        pytest.param(body(input=["a", 1]), 422, id="ids among texts"),
        pytest.param(body(input=7), 422, id="number"),
        pytest.param(body(model=["a"]), 422, id="model"),
        pytest.param(b"[]", 422, id="list"),
        pytest.param(b"null", 422, id="null"),
        pytest.param(b"", 400, id="empty"),
        pytest.param(b'{"model": "a", "inp', 400, id="half"),
    ],
)
def test_wrong_json_is_refused_in_a_sentence(server, sent, status):
    """Wrong types, deep nesting, duplicate keys, NaN, huge integers, unknown fields."""
    assert server.error(sent)[0] == status


def test_every_error_of_a_request_is_named(server):
    """A validation error lists at most ten fields, with the beginnings of their values."""
    answer = server.http.post(
        "/v1/embeddings",
        json={"model": 1, "input": "a", "task": 2, "x" * 5: "y" * 9_999}
        | dict.fromkeys("abcdefghij"),
    )
    errors = answer.json()["errors"]
    assert {"model", "task"} <= {error["field"] for error in errors} and len(errors) == 10
    assert len(answer.content) < 5_000
