"""GET /v1/models: the models of the server."""

from typing import Any

from starlette.responses import Response

from polyvec.server.errors import ApiError, ErrorCode
from polyvec.server.model import ServedModel
from polyvec.server.service import Endpoint, RequestContext, json_response

PRICES = ("prompt", "completion", "image", "request", "input_cache_read", "input_cache_write")


def describe_model(name: str, model: ServedModel) -> dict[str, Any]:
    """A model under one of its names. `object` and `owned_by` are OpenAI's, the rest Jina's."""
    return {
        "id": name,
        "object": "model",
        "owned_by": "polyvec",
        "created": model.created,
        "name": model.name,
        "description": "tasks: " + ", ".join(task.name for task in model.config.tasks),
        "hugging_face_id": "",
        "input_modalities": ["text"],
        "output_modalities": ["embeddings"],
        "context_length": model.config.max_tokens,
        "max_output_length": model.config.width,
        "dims": list(model.config.dims),
        "tasks": [task.name for task in model.config.tasks],
        "pricing": dict.fromkeys(PRICES, "0"),
        "quantization": "",
        "supported_features": [],
        "supported_sampling_parameters": [],
        "datacenters": [],
    }


async def list_models(context: RequestContext) -> Response:
    """GET /v1/models."""
    models = [describe_model(*item) for item in context.service.models_by_name.items()]
    return json_response({"object": "list", "data": models})


async def show_model(context: RequestContext) -> Response:
    """GET /v1/models/{name}."""
    name = context.path_params["model_id"]
    try:
        return json_response(describe_model(name, context.service.choose_model(name)))
    except ApiError:
        raise ApiError(
            ErrorCode.RESOURCE_NOT_FOUND, f"model '{name[:80]}' not found or access denied"
        ) from None


ENDPOINTS = [
    Endpoint(method="GET", path="/v1/models", answer=list_models, summary="List the models"),
    Endpoint(
        method="GET",
        path="/v1/models/{model_id:path}",
        answer=show_model,
        summary="Describe one model",
    ),
]
