"""OpenTelemetry: spans to a collector, by OTLP over HTTP. The extra `otel`, loaded only where there is an endpoint.

The SDK's batch processor sends from a thread of its own: no task waits for a collector, also not for one that hangs.
Spans that find no room among `MAX_WAITING` are dropped. At the end what waits is sent, for `FLUSH_S` at the most.

A client's `traceparent` is heeded only where `tracing.heed_traceparent` says so: it would let strangers choose what is
sampled, and what is whose child.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from ipfsreg import __version__, tracing
from ipfsreg.config import TracingConfig
from ipfsreg.errors import ConfigError
from ipfsreg.http.accesslog import bounded
from ipfsreg.http.connection import Handler
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

logger = logging.getLogger(__name__)

MAX_WAITING = 4096
MAX_BATCH = 512
SEND_EVERY_S = 2.0
SEND_TIMEOUT_S = 5.0
FLUSH_S = 3.0
CLIENT_GONE = 499


Traced = Callable[[Handler], Handler]
"""Makes a handler one whose requests are spans."""


@asynccontextmanager
async def open_tracing(settings: TracingConfig, *, instance: str) -> AsyncIterator[Traced]:
    """Send spans of this process to the collector of *settings*, if any, for as long as the block lasts.

    Raises:
        ConfigError: the packages of the extra are not installed.
    """
    if not settings.endpoint:
        yield lambda handler: handler
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        right = f"needs `pip install ipfsreg[otel]` ({error})"
        raise ConfigError("tracing.endpoint", settings.endpoint, right) from None
    import requests

    session = requests.Session()
    session.trust_env = False  # neither proxies nor passwords that the operator did not name here
    session.max_redirects = 0
    exporter = OTLPSpanExporter(
        settings.endpoint, headers=dict(settings.headers), timeout=SEND_TIMEOUT_S, session=session
    )
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=Resource(
            {"service.name": settings.service_name, "service.version": __version__, "service.instance.id": instance}
        ),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_attributes=32, max_events=16, max_attribute_length=1024),
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=MAX_WAITING,
            schedule_delay_millis=SEND_EVERY_S * 1000,
            max_export_batch_size=MAX_BATCH,
        )
    )
    tracer = provider.get_tracer("ipfsreg", __version__)
    tracing.switch(tracer)
    try:
        yield partial(_traced, tracer=tracer, heed_traceparent=settings.heed_traceparent)
    finally:
        tracing.switch(None)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_S) as patience:
            # The stubs that libp2p brings along are older than this parameter.
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)  # type: ignore[call-arg]
        if patience.cancelled_caught:
            logger.warning("the collector of spans does not take the last ones in time")


def _traced(handler: Handler, tracer: Tracer, heed_traceparent: bool) -> Handler:
    """*handler*, each of its requests a span from its head to the last byte of the answer."""
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, StatusCode, use_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    @asynccontextmanager
    async def current(span: Span) -> AsyncIterator[None]:
        with use_span(span, end_on_exit=True):
            yield

    async def answer(request: Request) -> Response:
        parent = propagator.extract(request.headers, Context()) if heed_traceparent else Context()
        attributes = {
            "http.request.method": request.method,
            "url.path": bounded(request.path),
            "client.address": request.peer,
            "user_agent.original": bounded(request.headers.get("user-agent", "")),
        }
        span = tracer.start_span(request.method, parent, SpanKind.SERVER, attributes)
        # Left when the answer has been sent, or cannot be: by the task that is here now.
        await request.keep(current(span))
        status = CLIENT_GONE
        try:
            response = await handler(request)
            status = response.status
        finally:
            span.set_attribute("http.response.status_code", status)
            if request.route:
                span.set_attribute("http.route", request.route)
                span.update_name(f"{request.method} {request.route}")
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        # Given again without us it would leave no span.
        return replace(response, stands=None)

    return answer
