"""The calls in docs/serving.md work unchanged, and its options exist."""

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from polyvec.cli.serve import serve
from polyvec.server.limits import Limits
from polyvec.server.routes import ENDPOINTS
from tests.server.conftest import serving

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
CALLS = [
    shlex.split(call)
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for call in re.split(r"^(?=curl )", block, flags=re.MULTILINE)
    if call.strip()
]


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """A server with everything that the page needs."""
    folder = tmp_path_factory.mktemp("data")
    with serving(classifiers=folder / "classifiers.sqlite", batches=folder / "jobs") as running:
        yield running


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[1].rpartition(":8080")[2])
def test_the_calls_of_the_page_work(documented, call):
    command, url, *options = call
    path = url.removeprefix("http://127.0.0.1:8080")
    assert command == "curl" and path != url
    named = dict(zip(options[::2], options[1::2], strict=True))
    if "-d" in named:
        name, _, value = named["-H"].partition(": ")
        answer = documented.http.post(path, content=named["-d"], headers={name: value})
    else:
        answer = documented.http.get(path)
    assert answer.status_code == 200, answer.text


def test_every_route_is_on_the_page():
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{batch_id}", "ID").partition("/{")[0]
        assert path in PAGE, path


def test_the_options_of_the_page_exist():
    known = set(inspect.signature(serve).parameters) | {field.name for field in fields(Limits)}
    named = set(re.findall(r"`--([a-z-]+)", PAGE)) - {"help", "build-arg", "peer"}
    assert len(named) > 15
    assert {name.replace("-", "_") for name in named} <= known
