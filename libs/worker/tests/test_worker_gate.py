import pytest
from tandem.v1 import cluster_pb2 as pb
from tandem_common.errors import Conflict, Unavailable
from tandem_worker.accepted import AcceptedRequests
from tandem_worker.gate import Gate, supported_roles
from tandem_worker.links import MAX_PEERS, LinkSpeeds

ALL = (pb.ROLE_PREFILL, pb.ROLE_DECODE, pb.ROLE_BOTH)


@pytest.mark.parametrize(
    ("role", "duties"),
    [
        (pb.ROLE_PREFILL, {pb.ROLE_PREFILL}),
        (pb.ROLE_DECODE, {pb.ROLE_DECODE}),
        (pb.ROLE_BOTH, {pb.ROLE_PREFILL, pb.ROLE_DECODE}),
    ],
)
def test_a_role_decides_what_is_taken_on(role: pb.Role.ValueType, duties: set[int]) -> None:
    gate = Gate(role, ALL)
    for duty in (pb.ROLE_PREFILL, pb.ROLE_DECODE):
        if duty in duties:
            gate.check(duty)
        else:
            with pytest.raises(Conflict):
                gate.check(duty)


def test_a_draining_worker_takes_nothing_until_every_drain_is_over() -> None:
    gate = Gate(pb.ROLE_BOTH, ALL)
    gate.begin_drain()
    gate.begin_drain()
    gate.end_drain()
    with pytest.raises(Unavailable):
        gate.check(pb.ROLE_DECODE)
    assert gate.status == pb.WORKER_STATUS_DRAINING
    gate.end_drain()
    gate.check(pb.ROLE_DECODE)
    assert gate.status == pb.WORKER_STATUS_SERVING


def test_only_installed_roles_are_supported() -> None:
    assert supported_roles([pb.ROLE_PREFILL]) == [pb.ROLE_PREFILL]
    assert supported_roles([pb.ROLE_DECODE]) == [pb.ROLE_DECODE, pb.ROLE_BOTH]
    assert supported_roles([pb.ROLE_DECODE, pb.ROLE_PREFILL]) == list(ALL)
    with pytest.raises(Conflict):
        Gate(pb.ROLE_BOTH, [pb.ROLE_PREFILL])


def test_requests_are_listed_as_accepted_for_a_while() -> None:
    accepted = AcceptedRequests(2.0)
    accepted.add("a", 0.0)
    accepted.add("b", 1.5)
    assert accepted.recent(2.0) == ["a", "b"]
    assert accepted.recent(3.0) == ["b"]
    assert accepted.recent(4.0) == []


def test_links_are_measured_per_peer_and_bounded() -> None:
    links = LinkSpeeds()
    links.observe("p", 1000, 0.5)
    assert links.to_proto() == []
    links.observe("p", 1 << 20, 1.0)
    (link,) = links.to_proto()
    assert (link.source_worker_id, link.latency_ms, link.bytes_per_ms) == ("p", 0.5, 1 << 20)
    for number in range(2 * MAX_PEERS):
        links.observe(str(number), 1 << 20, 1.0)
    assert len(links.to_proto()) == MAX_PEERS
