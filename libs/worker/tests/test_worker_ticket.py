import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import PermissionDenied
from tandem_worker.ticket import TicketOffice

CLAIMS = pb.TicketClaims(request_id="r", lease_id="l", source_worker_id="p", num_blocks=3)
OFFICE = TicketOffice(b"a secret of the tests")


def test_a_ticket_says_what_was_signed() -> None:
    assert OFFICE.verify(OFFICE.sign(CLAIMS)) == CLAIMS


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_bit_of_a_ticket_can_be_changed(position: int, mask: int) -> None:
    ticket = bytearray(OFFICE.sign(CLAIMS))
    ticket[position % len(ticket)] ^= mask
    try:
        claims = OFFICE.verify(bytes(ticket))
    except PermissionDenied:
        return
    assert claims == CLAIMS  # a change of the encoding only


@given(st.binary(max_size=200))
def test_rubbish_is_no_ticket(rubbish: bytes) -> None:
    with pytest.raises(PermissionDenied):
        OFFICE.verify(rubbish)


def test_tickets_of_another_secret_and_huge_ones_are_refused() -> None:
    with pytest.raises(PermissionDenied):
        TicketOffice(b"another secret of somebody").verify(OFFICE.sign(CLAIMS))
    with pytest.raises(PermissionDenied):
        OFFICE.verify(OFFICE.sign(pb.TicketClaims(request_id="r" * 5000)))
