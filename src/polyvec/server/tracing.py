"""Traces over OTLP, for those who ask for them: a span a request, with its stages inside.

Needs the extra polyvec[traces].
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Traces:
    """Where spans go; no globals, so that other code's traces are left alone."""

    def __init__(self, collector: str) -> None:
        """`collector` is a URL like http://localhost:4318, which takes OTLP over HTTP."""
        resource = Resource.create({SERVICE_NAME: "polyvec"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("polyvec.server")

    @property
    def span(self) -> Callable[[str], AbstractContextManager[object]]:
        """Makes a stage of the request under way."""
        return self.tracer.start_as_current_span

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application whose requests are traced."""
        return Tracing(app, self)

    def stop(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class Tracing:
    """ASGI middleware behind the gate: one span a request, in the trace that the client names."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request inside its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        parent, state = TraceContextTextMapPropagator().extract(carrier), scope["state"]
        tracer = self._traces.tracer
        with tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, answer)
            span.update_name(f"{scope['method']} {state['route']}")
            span.set_attribute("polyvec.request_id", state["request_id"])
            for name, value in state.get("sizes", {}).items():
                span.set_attribute(f"polyvec.{name}", value)
