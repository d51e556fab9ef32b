from __future__ import annotations

import pytest
from tandem.v1 import router_pb2
from tandem_common.errors import InvalidRequest
from tandem_frontend.routing_headers import apply_routing_headers


def test_headers_set_deadline_and_session() -> None:
    query = router_pb2.RouteQuery()
    apply_routing_headers({"x-tandem-ttft-deadline-ms": "1500", "x-tandem-session-id": "s1"}, query)
    assert (query.ttft_deadline_ms, query.session_id) == (1500, "s1")


def test_a_deadline_in_the_body_goes_before_the_header() -> None:
    query = router_pb2.RouteQuery(ttft_deadline_ms=200)
    apply_routing_headers({"x-tandem-ttft-deadline-ms": "1500"}, query)
    assert query.ttft_deadline_ms == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-tandem-ttft-deadline-ms": value}
        for value in ("", "-1", "0", "1.5", "soon", "9" * 400, "²", str(2**31))
    ]
    + [{"x-tandem-session-id": "x" * 129}, {"x-tandem-session-id": "é"}],
)
def test_headers_that_make_no_sense_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        apply_routing_headers(headers, router_pb2.RouteQuery())
