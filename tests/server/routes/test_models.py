"""/v1/models lists the models."""

from tests.server.conftest import MODEL, check_error


def test_models_are_found_by_each_of_their_names(server, jina_schema):
    listed = server.http.get("/v1/models").json()
    jina_schema("ModelListResponse", listed)
    assert [model["id"] for model in listed["data"]] == ["polyvec-mini", MODEL]
    for name in ("polyvec-mini", f"jina-ai/{MODEL}"):
        one = server.http.get(f"/v1/models/{name}").json()
        jina_schema("ModelInfo", one)
        assert one["max_output_length"] == 384
    assert check_error(server.http.get("/v1/models/other"))[0] == 404
