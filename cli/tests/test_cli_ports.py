"""Which ports the frontend gets."""

from __future__ import annotations

import socket

import pytest
from tandem_cli.ports import can_listen, choose_port
from tandem_common.config import ConfigError


def test_the_default_port_is_taken_when_it_is_free():
    assert choose_port(None, 8000, flag="--http-port", is_free=lambda port: True) == 8000


def test_the_next_free_port_is_taken_when_nobody_asked_for_one():
    assert choose_port(None, 8000, flag="--http-port", is_free=lambda port: port >= 8003) == 8003


def test_a_port_that_was_asked_for_and_is_used_is_an_error_with_the_fix():
    with pytest.raises(ConfigError, match=r"port 8000 is used .*--http-port"):
        choose_port(8000, 8000, flag="--http-port", is_free=lambda port: False)


def test_nought_leaves_the_choice_to_the_system():
    assert choose_port(0, 8000, flag="--x", is_free=lambda port: False, avoid=frozenset({0})) == 0


def test_two_services_never_get_one_port():
    assert choose_port(None, 8000, flag="--x", is_free=lambda port: True, avoid=frozenset({8000})) == 8001
    with pytest.raises(ConfigError):
        choose_port(8000, 8001, flag="--x", is_free=lambda port: True, avoid=frozenset({8000}))


def test_the_search_for_a_port_ends():
    with pytest.raises(ConfigError, match="--http-port"):
        choose_port(None, 8000, flag="--http-port", is_free=lambda port: False)


def test_a_listening_program_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not can_listen("127.0.0.1", port)
    assert can_listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        can_listen("192.0.2.1", 8000)
