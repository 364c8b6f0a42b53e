"""/v1/segment counts tokens and splits a text."""


def test_segments_cover_the_text(server, library):
    text = "One sentence here. Another one there! 猫が好き。 And the end"
    body = {"content": text, "return_tokens": True, "return_chunks": True, "max_chunk_length": 25}
    answer = server.http.post("/v1/segment", json=body).json()
    assert "".join(answer["chunks"]) == text and max(map(len, answer["chunks"])) <= 25
    assert [text[a:b] for a, b in answer["chunk_positions"]] == answer["chunks"]
    ids = [i for chunk in answer["tokens"] for _, [i] in chunk]
    [expected] = library.tokenizer.encode([text], [""])
    assert ids == expected.ids[1:-1].tolist() and answer["num_tokens"] == len(ids)
    head = server.http.post("/v1/segment", json={"content": text, "head": 3}).json()
    assert head["num_tokens"] == 3
    assert server.error({"content": text, "head": 1, "tail": 1}, path="/v1/segment")[0] == 422


def test_an_empty_text_has_no_segments(server):
    body = {"content": "", "return_tokens": True, "return_chunks": True}
    answer = server.http.post("/v1/segment", json=body).json()
    assert (answer["num_tokens"], answer["chunks"], answer["tokens"]) == (0, [], [])
