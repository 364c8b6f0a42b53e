"""Routes about the server itself: probes, metrics, the OpenAPI document, and the playground."""

from pathlib import Path

from starlette.responses import Response

from polyvec.server.openapi import describe_api
from polyvec.server.service import Endpoint, RequestContext, json_response

PLAYGROUND = Path(__file__).parents[1] / "playground.html"


async def live(context: RequestContext) -> Response:
    """GET /live: the event loop runs. Does not depend on engines or load."""
    return json_response({"status": "ok"})


async def ready(context: RequestContext) -> Response:
    """GET /ready, /health and /ping: the server can answer requests."""
    is_ready, state = context.service.check_ready()
    models = [model.name for model in context.service.models]
    return json_response({"status": state, "models": models}, 200 if is_ready else 503)


async def metrics(context: RequestContext) -> Response:
    """GET /metrics. A key sees the usage of all keys only if the key file says `metrics=all`."""
    context.service.check_ready()
    reader = context.api_key
    keys = context.service.api_keys.all if reader.sees_all_usage else [reader]
    usage = [(key.name, key.num_requests, key.num_tokens) for key in keys]
    return Response(
        context.service.metrics.render(usage),
        media_type="text/plain; version=0.0.4; charset=utf-8",
    )


async def page(context: RequestContext) -> Response:
    """GET /: the playground."""
    return Response(PLAYGROUND.read_bytes(), media_type="text/html; charset=utf-8")


async def document(context: RequestContext) -> Response:
    """GET /openapi.json."""
    service = context.service
    tasks = list({task.name: None for model in service.models for task in model.config.tasks})
    choices = {"model": list(service.models_by_name), "task": tasks, "prompt_name": tasks}
    return json_response(describe_api(service.endpoints, choices))


ENDPOINTS = [
    Endpoint(method="GET", path="/live", answer=live, summary="Liveness probe"),
    Endpoint(method="GET", path="/ready", answer=ready, summary="Readiness probe"),
    Endpoint(
        method="GET", path="/health", answer=ready, summary="Readiness probe, as TEI names it"
    ),
    Endpoint(
        method="GET", path="/ping", answer=ready, summary="Readiness probe, as SageMaker names it"
    ),
    Endpoint(method="GET", path="/metrics", answer=metrics, summary="Prometheus metrics"),
    Endpoint(method="GET", path="/", answer=page, summary="Playground, a web page"),
    Endpoint(method="GET", path="/openapi.json", answer=document, summary="OpenAPI document"),
]
