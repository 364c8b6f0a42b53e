"""Routes about the server itself."""


def test_the_document_names_every_route(server):
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/embeddings", "/v1/rerank", "/embed", "/v2/embed", "/v1/train"} <= set(
        document["paths"]
    )


def test_the_page_needs_nothing_from_elsewhere(server):
    page = server.http.get("/").text
    assert "<script>" in page and "http" not in page and "src=" not in page
