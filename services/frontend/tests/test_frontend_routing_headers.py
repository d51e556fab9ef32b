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


def test_headers_name_workers_labels_and_a_price() -> None:
    query = router_pb2.RouteQuery(excluded_worker_ids=["d0"])
    headers = {
        "x-tandem-workers": "p1, d1",
        "x-tandem-excluded-workers": "d2",
        "x-tandem-labels": "region=eu,hardware=h100",
        "x-tandem-max-price": "0.25",
    }
    apply_routing_headers(headers, query)
    assert query == router_pb2.RouteQuery(
        pinned_worker_ids=["p1", "d1"],
        excluded_worker_ids=["d0", "d2"],
        required_labels={"region": "eu", "hardware": "h100"},
        max_price_per_million_tokens=0.25,
    )
    free = router_pb2.RouteQuery()
    apply_routing_headers({"x-tandem-max-price": "0"}, free)
    assert free.HasField("max_price_per_million_tokens")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-tandem-ttft-deadline-ms": value}
        for value in ("", "-1", "0", "1.5", "soon", "9" * 400, "²", str(2**31))
    ]
    + [{"x-tandem-session-id": "x" * 129}, {"x-tandem-session-id": "é"}]
    + [{"x-tandem-max-price": value} for value in ("", "-1", "nan", "inf", "1e9", "9" * 10, "cheap")]
    + [{"x-tandem-labels": value} for value in ("region", "region=", "=eu", "é=1", "a=b," * 2000)]
    + [{"x-tandem-workers": "x" * 5000}, {"x-tandem-excluded-workers": "é"}],
)
def test_headers_that_make_no_sense_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        apply_routing_headers(headers, router_pb2.RouteQuery())
