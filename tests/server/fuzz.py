"""Coverage-guided fuzzing of everything that parses the body of a request.

Install atheris with pip, then run `python -m tests.server.fuzz build/corpus -max_total_time=600`.
The options are those of libFuzzer. It stops at the first body that is neither accepted nor refused
with an ApiError, or that takes ten seconds.
"""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path

SEEDS = (
    {"model": "m", "input": ["a", {"text": "b"}], "task": "separation", "dimensions": 8},
    {"model": "m", "input": [[0, 5, 2], [0, 7, 2]], "encoding_format": "base64", "user": "u"},
    {"model": "m", "input": ["a", "b"], "late_chunking": True, "embedding_type": ["float"]},
    {"model": "m", "query": "q", "documents": ["d", {"text": "e"}], "top_n": 1},
    {"model": "m", "input": "x", "labels": {"group": ["a", "b"]}},
    {"classifier_id": "c", "input": [{"text": "t", "label": "l"}], "num_iters": 3},
    {"content": "One. Two! \U0001f600", "return_tokens": True, "return_chunks": True, "head": 3},
    {"inputs": ["a"], "truncate": True, "prompt_name": "separation", "normalize": False},
    {"query": "q", "texts": ["a"], "return_text": True, "raw_scores": True},
    {"model": "m", "texts": ["a"], "input_type": "search_query", "embedding_types": ["int8"]},
    {"model": "m", "input": "\ud83d half", "output": "multi_vector", "truncate": None},
)

KEYS = sorted({key for seed in SEEDS for key in seed})
VALUES = [None, "", "float", "base64", "END", "Right", "public", "dense", "classification", 1, -1]


@cache
def load():
    """The schemas of all requests, and the bundled model's tokenizer."""
    from polyvec.model_folder import BUNDLED
    from polyvec.server.routes import ENDPOINTS
    from polyvec.tokenizer import Tokenizer

    kinds = dict.fromkeys(endpoint.reads for endpoint in ENDPOINTS if endpoint.reads)
    return list(kinds), Tokenizer.load(BUNDLED, 64)


def parse_body(body):
    """Parse a body as every route does. Any exception is a bug."""
    from polyvec.server.errors import DEFAULT_ERROR_FORM, ApiError
    from polyvec.server.routes.segment import SegmentRequest, segment_text
    from polyvec.server.serialise import to_json
    from polyvec.server.wire import parse_json, validate

    kinds, tokenizer = load()
    try:
        value = parse_json(body)
    except ApiError as error:
        assert error.status == 400
        to_json(DEFAULT_ERROR_FORM.body(error, "id"))
        return
    for kind in kinds:
        try:
            request = validate(kind, value)
        except ApiError as error:
            assert error.status == 422 and error.errors
            assert len(to_json(DEFAULT_ERROR_FORM.body(error, "id"))) < 100_000
            continue
        to_json(request.model_dump())
        if isinstance(request, SegmentRequest):
            [tokens] = tokenizer.encode([request.content], [""], truncate=False)
            answer = segment_text(request, tokens)
            assert (
                "chunks" not in answer
                or request.head
                or request.tail
                or ("".join(answer["chunks"]) == request.content)
            )
            [list(chunk) for chunk in answer.get("tokens", [])]
        else:
            tokenise_request(request, tokenizer)


def tokenise_request(request, tokenizer):
    """Tokenise texts, token ids, and the chunks of one document."""
    import numpy as np

    from polyvec.late_chunking import find_token_spans, join_chunks
    from polyvec.server.inputs import tokenise

    for name in ("input", "documents", "inputs", "texts"):
        texts = getattr(request, name, None)
        if not isinstance(texts, list) or not all(isinstance(text, str | list) for text in texts):
            continue
        for tokens in tokenise(tokenizer, texts, "search: "):
            assert 2 <= len(tokens.ids) <= tokenizer.max_tokens
        if all(isinstance(text, str) and text.strip() for text in texts):
            joined, offsets = join_chunks(texts)
            [document] = tokenise(tokenizer, [joined], "")
            starts, ends = find_token_spans(document, joined, offsets)
            assert (starts <= ends).all() and (ends <= len(document.ids)).all()
            used = ends > starts
            assert np.array_equal(starts[used][1:], ends[used][:-1]), "tokens belong to one chunk"


def make_body(data):
    """A body from libFuzzer's bytes: the bytes themselves, or a seed with some changed values."""
    import atheris

    source = atheris.FuzzedDataProvider(data)
    if source.ConsumeBool():
        return source.ConsumeBytes(len(data))
    body = dict(source.PickValueInList(list(SEEDS)))
    for _ in range(source.ConsumeIntInRange(0, 3)):
        body[source.PickValueInList(KEYS)] = make_value(source, depth=3)
    return json.dumps(body).encode()


def fuzz_one(data):
    """Parse one body; libFuzzer calls this function."""
    parse_body(make_body(data))


def make_value(source, *, depth):
    """A JSON value."""
    kind = source.ConsumeIntInRange(0, 7 if depth else 5)
    if kind == 6:
        return [make_value(source, depth=depth - 1) for _ in range(source.ConsumeIntInRange(0, 4))]
    if kind == 7:
        return {
            source.PickValueInList(KEYS): make_value(source, depth=depth - 1)
            for _ in range(source.ConsumeIntInRange(0, 3))
        }
    makers = (
        lambda: source.ConsumeUnicode(source.ConsumeIntInRange(0, 200)),
        lambda: source.ConsumeUnicodeNoSurrogates(20),
        lambda: source.ConsumeInt(source.ConsumeIntInRange(1, 9)),
        source.ConsumeFloat,
        source.ConsumeBool,
        lambda: source.PickValueInList(VALUES),
    )
    return makers[kind]()


def main():
    """Fuzz until libFuzzer stops."""
    import atheris

    with atheris.instrument_imports(include=["polyvec.server", "json"]):
        load()
        import polyvec.server.inputs
        import polyvec.server.wire  # noqa: F401
    with tempfile.TemporaryDirectory() as seeds:
        for number, seed in enumerate(SEEDS):
            (Path(seeds) / str(number)).write_text(json.dumps(seed))
        words = Path(seeds) / "words"
        words.write_text("\n".join(f'"\\"{key}\\":"' for key in KEYS))
        first, *options = sys.argv[1:] or ["build/corpus"]
        Path(first).mkdir(parents=True, exist_ok=True)
        flags = [f"-dict={words}", "-timeout=10", "-max_len=4096", *options]
        atheris.Setup([sys.argv[0], first, seeds, *flags], fuzz_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
