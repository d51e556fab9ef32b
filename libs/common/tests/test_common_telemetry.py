"""Without an exporter nothing is recorded, and a caller's trace context goes on as it came."""

import pytest
from tandem_common.telemetry import current_traceparent, span

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_callers_context_is_passed_on_to_the_end_of_its_span():
    with span("outer", TRACEPARENT), span("inner"):
        assert current_traceparent() == TRACEPARENT
    assert current_traceparent() == ""


@pytest.mark.parametrize("odd", ["", "x", TRACEPARENT + "\r\nevil: 1", TRACEPARENT.upper()])
def test_what_is_no_trace_context_is_not_passed_on(odd):
    with span("outer", odd):
        assert current_traceparent() == ""
