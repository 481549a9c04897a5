"""Spans where nobody wants any."""

import subprocess
import sys

from ipfsreg import tracing


def test_switched_off_a_span_is_nothing() -> None:
    assert not tracing.is_on()
    with tracing.span("one", {"key": 1}) as span:
        span.set_attribute("key", "value")
        with tracing.span("two", detached=True) as inner:
            assert inner is span
    stages = tracing.Stages()
    stages.enter("one")
    stages.leave()


def test_a_node_that_traces_nothing_loads_nothing_of_opentelemetry() -> None:
    code = "import sys, ipfsreg.node; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
