"""Reading requests: whole ones however their bytes are split, and nothing that two servers could read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_frontend.http_messages import HttpRequest, HttpResponse
from tandem_frontend.http_reader import MAX_HEAD_BYTES, MAX_SKIPPED_BYTES, BadRequest, Phase, RequestReader


class Sent:
    """Stands for a transport."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def make_reader(*, refusal: HttpResponse | None = None, max_body_bytes: int = 1000) -> RequestReader:
    def admit(request: HttpRequest) -> None:
        request.refusal = refusal

    return RequestReader(Sent(), admit, max_body_bytes)  # type: ignore[arg-type]


def read(data: bytes) -> list[HttpRequest]:
    reader = make_reader()
    reader.feed(data)
    return reader.take()


HEAD = b"POST /x?y HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nX-Two: 2\r\n"
WHOLE = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nHost: b\r\nTrailer: 1\r\n\r\n"
)


@given(cuts=st.lists(st.integers(1, 400), max_size=12), first=st.sampled_from([WHOLE, CHUNKED]))
def test_requests_do_not_depend_on_how_their_bytes_are_split(cuts: list[int], first: bytes) -> None:
    data = first + WHOLE + CHUNKED
    reader, start = make_reader(), 0
    requests = []
    for cut in [*sorted(cuts), len(data)]:
        reader.feed(data[start:cut])
        requests += reader.take()
        start = max(start, min(cut, len(data)))
    assert [(r.method, r.path, r.body, r.headers["x-two"]) for r in requests] == [
        ("POST", "/x", b"hello", "1, 2")
    ] * 3
    assert all(request.headers["host"] == "a" for request in requests), "a trailer changes nothing"
    assert reader.phase is Phase.BETWEEN


@pytest.mark.parametrize(
    "lines",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2, 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;ext=a\nb\r\n{}\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n folded: yes\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx\x01: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.9\r\nhost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(lines: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        read(lines)
    assert caught.value.status in (400, 505)


def test_requests_before_a_bad_one_are_still_there() -> None:
    reader = make_reader()
    with pytest.raises(BadRequest):
        reader.feed(WHOLE + b"nonsense\r\n\r\n")
    assert [request.body for request in reader.take()] == [b"hello"]


def test_nothing_is_read_behind_a_request_that_closes() -> None:
    reader = make_reader()
    reader.feed(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /x HTTP/1.1\r\nhost: a\r\n\r\n")
    reader.feed(WHOLE)
    assert [(request.path, request.closes) for request in reader.take()] == [("/", True)]


@pytest.mark.parametrize(("version", "wish", "closes"), [("1.1", "", False), ("1.0", "", True),
                                                         ("1.0", "connection: keep-alive\r\n", False),
                                                         ("1.1", "connection: close\r\n", True)])  # fmt: skip
def test_a_connection_lives_on_as_the_client_wishes(version: str, wish: str, closes: bool) -> None:
    (request,) = read(f"GET / HTTP/{version}\r\nhost: a\r\n{wish}\r\n".encode())
    assert request.closes is closes
    assert (b"Connection: keep-alive" in request.head(200, b"x")) is (version == "1.0" and not closes)


def test_an_offer_to_upgrade_is_ignored() -> None:
    offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"
    data = HEAD + offer + b"content-length: 5\r\n\r\nhello" + WHOLE
    assert [request.body for request in read(data)] == [b"hello", b"hello"]


def test_no_byte_of_a_header_is_lost() -> None:
    for offer in (b"", b"connection: upgrade\r\nupgrade: h2c\r\n"):
        (request,) = read(HEAD + b"authorization: Bearer \xc3\xa9\xff\r\n" + offer + b"\r\n")
        assert request.headers["authorization"].encode("utf-8", "surrogateescape") == b"Bearer \xc3\xa9\xff"


@pytest.mark.parametrize("size", [1, 1000, 70_000])
def test_a_head_without_an_end_is_refused(size: int) -> None:
    reader = make_reader()
    reader.feed(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
    with pytest.raises(BadRequest) as caught:
        for _ in range(0, MAX_HEAD_BYTES + 2 * size, size):
            reader.feed(b"y" * size)
    assert caught.value.status == 431


def test_a_head_that_is_too_large_is_refused_when_it_comes_at_once() -> None:
    with pytest.raises(BadRequest) as caught:
        read(b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * MAX_HEAD_BYTES + b"\r\n")
    assert caught.value.status == 431


def test_the_beginning_of_a_head_behind_a_large_body_is_not_too_large() -> None:
    reader = make_reader(max_body_bytes=100_000)
    reader.feed(HEAD + b"content-length: 90000\r\n\r\n")
    reader.feed(b"x" * 90_000 + b"GET / HTTP/1.1\r\n")
    reader.feed(b"host: a\r\n\r\n")
    assert [len(request.body) for request in reader.take()] == [90_000, 0]


@pytest.mark.parametrize(
    "framing", [b"content-length: 1001\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n3e9\r\n"]
)
def test_a_body_that_is_too_large_is_refused(framing: bytes) -> None:
    reader = make_reader(max_body_bytes=1000)
    with pytest.raises(BadRequest) as caught:
        reader.feed(HEAD + framing + b"x" * 1001)
    assert caught.value.status == 413


def test_a_short_body_of_a_refused_request_is_skipped_and_a_long_one_is_not_waited_for() -> None:
    refusal = HttpResponse(b"no", 401)
    reader = make_reader(refusal=refusal)
    reader.feed(WHOLE + WHOLE)
    assert [(request.refusal, request.body) for request in reader.take()] == [(refusal, b"")] * 2
    with pytest.raises(BadRequest) as caught:
        reader.feed(HEAD + b"content-length: %d\r\n\r\n" % (MAX_SKIPPED_BYTES + 1))
    assert caught.value.response is refusal


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    sent = Sent()
    reader = RequestReader(sent, lambda request: None, 1000)  # type: ignore[arg-type]
    reader.feed(HEAD + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
    assert sent.data == b"HTTP/1.1 100 Continue\r\n\r\n"
    for is_free, ahead in ((False, b""), (True, WHOLE)):
        sent.data = b""
        reader = RequestReader(sent, lambda request: None, 1000)  # type: ignore[arg-type]
        reader.is_free = is_free
        reader.feed(ahead + HEAD + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        assert sent.data == b"", "not into the middle of an earlier answer"
    with pytest.raises(BadRequest):
        make_reader(refusal=HttpResponse(b"", 401)).feed(
            HEAD + b"expect: 100-continue\r\ncontent-length: 70000\r\n\r\n"
        )
