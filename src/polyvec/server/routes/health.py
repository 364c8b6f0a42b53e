"""All routes, and those that say how the server is: probes, metrics, its document and page."""

from starlette.responses import Response

from polyvec.server import dialects
from polyvec.server.app import Call, Endpoint, json_response, read_page
from polyvec.server.openapi import describe_api
from polyvec.server.routes import batch, classify, embeddings, models, rerank, segment


async def live(call: Call) -> Response:
    """GET /live: the event loop turns. Says nothing of engines or load."""
    return json_response({"status": "ok"})


async def ready(call: Call) -> Response:
    """GET /ready and /health: requests can be answered."""
    good, state = call.service.state()
    models = [model.name for model in call.service.served]
    return json_response({"status": state, "models": models}, 200 if good else 503)


async def metrics(call: Call) -> Response:
    """GET /metrics."""
    call.service.state()
    return Response(
        call.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


async def page(call: Call) -> Response:
    """GET /: the playground."""
    return Response(read_page(), media_type="text/html; charset=utf-8")


async def document(call: Call) -> Response:
    """GET /openapi.json."""
    tasks = {task.name: None for model in call.service.served for task in model.config.tasks}
    choices = {"model": list(call.service.models), "task": list(tasks), "prompt_name": list(tasks)}
    return json_response(describe_api(ENDPOINTS, choices))


ENDPOINTS = [
    *embeddings.ENDPOINTS,
    Endpoint(method="GET", path="/live", answer=live, summary="Liveness, whatever the load"),
    Endpoint(method="GET", path="/ready", answer=ready, summary="Readiness"),
    Endpoint(method="GET", path="/health", answer=ready, summary="Readiness, by its other name"),
    Endpoint(method="GET", path="/metrics", answer=metrics, summary="Prometheus metrics"),
    Endpoint(method="GET", path="/", answer=page, summary="A page to try the API on"),
    Endpoint(method="GET", path="/openapi.json", answer=document, summary="This document"),
    *models.ENDPOINTS,
    *rerank.ENDPOINTS,
    *classify.ENDPOINTS,
    *segment.ENDPOINTS,
    *batch.ENDPOINTS,
    *dialects.ENDPOINTS,
]
