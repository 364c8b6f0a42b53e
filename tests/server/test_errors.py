"""There is one list of error codes, from which the page and the OpenAPI document are made."""

import re
from pathlib import Path

import pytest

from polyvec.server.errors import (
    COHERE_ERROR_FORM,
    DEFAULT_ERROR_FORM,
    ApiError,
    ErrorCode,
    error_table,
)
from polyvec.server.openapi import PROBES
from polyvec.server.routes import ENDPOINTS, tei
from polyvec.server.service import find_error_form

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text("utf-8")


def test_the_page_has_the_table_of_all_codes():
    [table] = re.findall(r"<!-- errors -->\n(.*?)\n<!-- /errors -->", PAGE, re.DOTALL)
    assert table == error_table(), f"the table on the page must be:\n{error_table()}"


def test_the_document_describes_every_code_at_every_route(server):
    document = server.http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for code in ErrorCode:
                if path in PROBES and code.status == 503:
                    continue
                response = operation["responses"][str(code.status)]
                assert f"{code.code}: {code.meaning}" in response["description"]


def test_every_code_is_used_and_no_other():
    sources = sorted((ROOT / "src/polyvec/server").rglob("*.py"))
    text = "\n".join(path.read_text("utf-8") for path in sources)
    used = set(re.findall(r"ErrorCode\.([A-Z_]+)", text))
    assert used == set(ErrorCode.__members__)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_has_what_each_family_of_clients_reads(code):
    error = ApiError(code, "a sentence", param="input")
    common = {"detail": "a sentence", "code": code.code, "request_id": "id"}
    for path, own in (
        ("/v1/embeddings", {"message": "a sentence", "code": code.code, "param": "input"}),
        ("/embed", "a sentence"),
    ):
        body = find_error_form(ENDPOINTS, path, "POST").body(error, "id")
        assert common.items() <= body.items()
        got = body["error"]
        assert got == own if isinstance(own, str) else own.items() <= got.items()
    body = find_error_form(ENDPOINTS, "/v2/embed", "POST").body(error, "id")
    assert common.items() <= body.items() and body["message"] == "a sentence"


def test_an_unknown_path_has_the_errors_of_its_neighbours():
    assert find_error_form(ENDPOINTS, "/v2/nowhere", "GET") is COHERE_ERROR_FORM
    assert find_error_form(ENDPOINTS, "/embed", "GET") is tei.ERROR_FORM
    for path in ("/v1/nowhere", "/nowhere", "/", "/v1/batch/batch_1", ""):
        assert find_error_form(ENDPOINTS, path, "GET") is DEFAULT_ERROR_FORM


def test_one_path_may_have_a_form_for_each_method():
    assert find_error_form(ENDPOINTS, "/", "POST") is tei.ERROR_FORM
