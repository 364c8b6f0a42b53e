"""GET /v1/models: what there is to ask."""

from typing import Any

from starlette.responses import Response

from polyvec.server.app import Call, Endpoint, json_response
from polyvec.server.errors import ApiError
from polyvec.server.model import Served


def describe(name: str, model: Served) -> dict[str, Any]:
    """A model as both families list it: OpenAI's `object` and `owned_by`, the rest Jina's."""
    free = dict.fromkeys(
        ("prompt", "completion", "image", "request", "input_cache_read", "input_cache_write"), "0"
    )
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
        "pricing": free,
        "quantization": "",
        "supported_features": [],
        "supported_sampling_parameters": [],
        "datacenters": [],
    }


async def list_models(call: Call) -> Response:
    """GET /v1/models."""
    models = [describe(name, model) for name, model in call.service.models.items()]
    return json_response({"object": "list", "data": models})


async def show_model(call: Call) -> Response:
    """GET /v1/models/{name}."""
    name = call.path["model_id"]
    try:
        return json_response(describe(name, call.service.find(name)))
    except ApiError:
        raise ApiError(
            404, "RESOURCE_NOT_FOUND", f"model '{name[:80]}' not found or access denied"
        ) from None


ENDPOINTS = [
    Endpoint(method="GET", path="/v1/models", answer=list_models, summary="The models' names"),
    Endpoint(
        method="GET", path="/v1/models/{model_id:path}", answer=show_model, summary="One model"
    ),
]
