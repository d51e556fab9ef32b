from __future__ import annotations

import pytest
from tandem_common.config import ConfigError
from tandem_common.redis_url import RedisKind, parse_redis_url


def test_one_server_is_left_to_the_client_library() -> None:
    for text in (
        "redis://127.0.0.1:6379/0",
        "rediss://u:p@host:1/2?ssl_ca_certs=/ca.pem",
        "unix:///run/redis.sock",
    ):
        place = parse_redis_url(text)
        assert (place.kind, place.url) == (RedisKind.SINGLE, text)


def test_sentinels_are_named_with_the_master_that_they_watch() -> None:
    place = parse_redis_url(
        "redis+sentinel://me:p%40ss@a:1,b,[::1]:3/main/2?sentinel_password=s&socket_timeout=0.5"
    )
    assert place.kind is RedisKind.SENTINEL
    assert place.nodes == (("a", 1), ("b", 26379), ("::1", 3))
    assert place.master == "main"
    assert place.options == {"username": "me", "password": "p@ss", "db": 2, "socket_timeout": 0.5}
    assert place.sentinel_options == {"password": "s"}


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    place = parse_redis_url("redis+cluster://me:secret@a:7000,b:7001")
    assert place.kind is RedisKind.CLUSTER
    assert place.nodes == (("a", 7000), ("b", 7001))
    assert place.options == {"username": "me", "password": "secret"}


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_tls_is_for_sentinels_and_clusters_too(kind: str) -> None:
    place = parse_redis_url(
        f"rediss+{kind}://a:1/{'main' if kind == 'sentinel' else ''}?ssl_ca_certs=/ca.pem"
    )
    tls = {"ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert place.options == tls
    assert place.sentinel_options == tls


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1,/main",
        "redis+cluster://a:1/3",
        "redis+cluster://a:port",
        "redis+ring://a:1",
        "unix+cluster:///run/redis.sock",
        "127.0.0.1:6379",
        "",
    ],
)
def test_what_cannot_be_used_is_refused_with_the_forms_that_can(text: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\+sentinel://HOST"):
        parse_redis_url(text)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_redis_url("redis+sentinel://me:hunter2@a:1")
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(parse_redis_url("redis+cluster://me:hunter2@a:1"))
    assert "hunter2" not in repr(parse_redis_url("redis://me:hunter2@a:1/0"))
