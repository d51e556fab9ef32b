from __future__ import annotations

import pytest
from router_fakes import decode_worker, prefill_worker
from tandem_router.topology import PRIOR_LINKS, Distance, distance, link_between
from tandem_router.view import SAME_HOST_LINK, Link, Links, Place


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Place(), Place(), Distance.ZONE),
        (Place(host="h"), Place(host="h"), Distance.HOST),
        (Place(host="h"), Place(host="i"), Distance.ZONE),
        (Place(host="h", rack="r"), Place(host="i", rack="r"), Distance.RACK),
        (Place(host="h", rack="r", zone="z"), Place(host="i", rack="s", zone="z"), Distance.ZONE),
        (Place(rack="r", zone="z"), Place(rack="r", zone="y"), Distance.REGION),
        (Place(host="h", zone="z"), Place(host="h", zone="y"), Distance.REGION),
        (Place(zone="z", region="n"), Place(zone="z", region="m"), Distance.APART),
        (Place(zone="z", region="n"), Place(zone="y", region="n"), Distance.REGION),
        (Place(zone="z"), Place(region="n"), Distance.ZONE),
    ],
)
def test_distance_is_the_closest_thing_shared_unless_a_wider_one_differs(
    a: Place, b: Place, expected: Distance
) -> None:
    assert distance(a, b) is expected
    assert distance(b, a) is expected


def test_farther_links_are_expected_to_be_slower() -> None:
    links = [PRIOR_LINKS[each] for each in sorted(Distance, key=lambda d: d.value)]
    rates, latencies = [link.bytes_per_ms for link in links], [link.latency_ms for link in links]
    assert rates == sorted(rates, reverse=True)
    assert latencies == sorted(latencies)


def test_a_measured_link_is_taken_as_measured() -> None:
    measured = Link(bytes_per_ms=7.0, latency_ms=8.0)
    destination = decode_worker("d", place=Place(host="h"), links={"p": measured})
    assert link_between(prefill_worker("p", place=Place(host="h")), destination) is measured
    assert link_between(prefill_worker("q", place=Place(host="h")), destination) == SAME_HOST_LINK


def test_the_best_link_is_as_good_as_any() -> None:
    links = Links({"a": Link(bytes_per_ms=9e6, latency_ms=7.0), "b": Link(bytes_per_ms=1.0, latency_ms=0.1)})
    assert links.best == Link(bytes_per_ms=9e6, latency_ms=0.1)
    assert Links().best == SAME_HOST_LINK
