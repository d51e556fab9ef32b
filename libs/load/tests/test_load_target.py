import pytest
from tandem_load.target import Target, TargetError


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://example.com:443/openai", "https://example.com/openai/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_may_lack_scheme_and_version(url: str, meant: str) -> None:
    assert Target.parse(url).url == meant


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://host:99999", "http://me:pw@host", "http://host?x=1"]
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(TargetError):
        Target.parse(url)


def test_a_key_that_would_break_the_header_is_refused_and_a_good_one_is_not_shown() -> None:
    with pytest.raises(TargetError, match="header"):
        Target.parse("http://host", "a\r\nX: y")
    target = Target.parse("http://host", "secret")
    assert "secret" not in repr(target)
    assert b"Authorization: Bearer secret\r\n" in target.get("/models")


def test_a_post_says_how_long_its_body_is() -> None:
    request = Target.parse("http://host:1/base").post("/completions", b"{}")
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\nHost: host:1\r\n")
    assert b"Content-Length: 2" in head
    assert body == b"{}"
