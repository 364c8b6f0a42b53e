"""The requests of the other routes: rerank, classify, train, segment, TEI's and Cohere's."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from polyvec.server.wire import Texts, Wire

Label = Annotated[str, Field(min_length=1, max_length=1_000)]
Top = Annotated[int, Field(ge=1, le=1_000_000)]

MAX_CHARACTERS = 1_000_000
"""In texts that are only cut or tokenised: an answer has many times their bytes."""


class RerankRequest(Wire):
    """POST /v1/rerank, as Jina has it."""

    model: str
    query: str
    documents: Texts
    top_n: Top | None = None
    return_documents: bool | None = True
    truncation: bool | None = True
    """Cut documents that are too long, instead of refusing them."""


class ClassifyRequest(Wire):
    """POST /v1/classify: with `labels` zero-shot, with `classifier_id` by a trained classifier."""

    model: str | None = None
    classifier_id: str | None = None
    input: Texts
    labels: (
        Annotated[list[Label], Field(min_length=1, max_length=512)]
        | Annotated[
            dict[str, Annotated[list[Label], Field(min_length=1, max_length=64)]],
            Field(min_length=1, max_length=8),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _check_kind(self) -> "ClassifyRequest":
        if (self.classifier_id is None) == (self.labels is None):
            raise ValueError("give either labels and a model, or a classifier_id")
        if self.labels is not None and self.model is None:
            raise ValueError("labels need a model")
        return self


class TrainItem(Wire):
    """A text and what it is."""

    text: str
    label: Label


class TrainRequest(Wire):
    """POST /v1/train: a new classifier for a `model`, or more examples for a `classifier_id`."""

    model: str | None = None
    classifier_id: str | None = None
    input: Annotated[list[TrainItem], Field(min_length=1, max_length=512)] | TrainItem
    access: Literal["public", "private"] = "public"
    num_iters: Annotated[int, Field(ge=1, le=100)] = 10

    @model_validator(mode="after")
    def _check_kind(self) -> "TrainRequest":
        if (self.classifier_id is None) == (self.model is None):
            raise ValueError("give either a model or a classifier_id")
        return self

    @property
    def items(self) -> list[TrainItem]:
        """The examples."""
        return [self.input] if isinstance(self.input, TrainItem) else self.input


class BatchLine(Wire):
    """One request of a batch job."""

    custom_id: Annotated[str, Field(min_length=1, max_length=256)]
    """Comes back with the answer."""
    body: dict[str, Any]
    """What /v1/embeddings reads; fields that are not there are the job's."""


class BatchRequest(Wire):
    """POST /v1/batch/embeddings."""

    model: str
    input: Annotated[list[BatchLine], Field(min_length=1, max_length=50_000)] | None = None
    input_url: str | None = None
    """Refused: the server fetches nothing from elsewhere."""
    webhook_url: str | None = None
    """Refused: the server calls nobody."""
    task: str | None = None
    dimensions: Annotated[int, Field(ge=1, le=16_384)] | None = None
    normalized: bool | None = True


class SegmentRequest(Wire):
    """POST /v1/segment."""

    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    tokenizer: str | None = None
    """A model's name; by default the first model's tokenizer."""
    return_tokens: bool = False
    return_chunks: bool = False
    max_chunk_length: Annotated[int, Field(ge=1, le=64_000)] = 1_000
    """Characters."""
    head: Top | None = None
    """Only the first so many tokens."""
    tail: Top | None = None
    """Only the last so many tokens."""

    @model_validator(mode="after")
    def _check_ends(self) -> "SegmentRequest":
        if self.head is not None and self.tail is not None:
            raise ValueError("give head or tail, not both")
        return self


class TeiRequest(Wire):
    """POST /embed and /embed_all."""

    inputs: Texts
    truncate: bool | None = False
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: str | None = None
    """The task."""
    normalize: bool = True
    dimensions: Annotated[int, Field(ge=1, le=16_384)] | None = None


class TeiRerankRequest(Wire):
    """POST /rerank."""

    query: str
    texts: Texts
    raw_scores: bool = False
    """Makes no difference: scores are cosines."""
    return_text: bool = False
    truncate: bool | None = False
    truncation_direction: Literal["Right", "right"] = "Right"


class TeiTokenizeRequest(Wire):
    """POST /tokenize."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None

    @model_validator(mode="after")
    def _check_size(self) -> "TeiTokenizeRequest":
        if sum(map(len, self.inputs)) > MAX_CHARACTERS:
            raise ValueError(f"inputs have more than {MAX_CHARACTERS:,} characters together")
        return self


CohereEncoding = Literal["float", "int8", "binary", "ubinary", "base64"]


class CohereRequest(Wire):
    """POST /v2/embed."""

    model: str
    texts: Texts
    input_type: Literal["search_document", "search_query", "classification", "clustering"]
    embedding_types: Annotated[list[CohereEncoding], Field(min_length=1)] | None = None
    output_dimension: Annotated[int, Field(ge=1, le=16_384)] | None = None
    truncate: Literal["NONE", "END"] = "END"
