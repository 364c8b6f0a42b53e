"""Optional tracing over OTLP: one span per request, with its stages inside.

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
    """Exports spans. It is not global, so the traces of other code are not affected."""

    def __init__(self, collector: str) -> None:
        """`collector` is the URL of an OTLP/HTTP collector, such as http://localhost:4318."""
        resource = Resource.create({SERVICE_NAME: "polyvec"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("polyvec.server")

    @property
    def span(self) -> Callable[[str], AbstractContextManager[object]]:
        """A function that makes a span for a stage of the current request."""
        return self.tracer.start_as_current_span

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application with tracing of its requests."""
        return TracingMiddleware(app, self)

    def stop(self) -> None:
        """Send the remaining spans, and stop."""
        self._provider.shutdown()


class TracingMiddleware:
    """ASGI middleware behind `RequestMiddleware`: one span per request, in the client's trace."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request within its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Only the ids of the client's trace are exported. `tracestate` is free text.
        traceparent = dict(scope["headers"]).get(b"traceparent", b"")
        carrier = {"traceparent": traceparent.decode("latin-1")}
        parent, state = TraceContextTextMapPropagator().extract(carrier), scope["state"]
        tracer = self._traces.tracer
        with tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:

            async def send_and_record(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, send_and_record)
            span.update_name(f"{scope['method']} {state['route']}")
            span.set_attribute("polyvec.request_id", state["log_id"])
            for name, value in state.get("usage", {}).items():
                span.set_attribute(f"polyvec.{name}", value)
