"""What users import, its documentation, and what it may depend on."""

from __future__ import annotations

import ast
import doctest
import inspect
import sys
from importlib import resources
from pathlib import Path

import pytest
import tandem_client
from tandem_client import AsyncClient, Client, Timeouts
from tandem_client.connection import Connection

SURFACE = {
    "AnswerStream", "AsyncAnswerStream", "AsyncClient", "Cancelled", "ChatMessage", "Client", "Completion",
    "Conflict", "DeadlineExceeded", "Delta", "FinishReason", "GenerationOptions", "InvalidRequest", "Messages",
    "Model", "NotFound", "Overloaded", "PermissionDenied", "RetryPolicy", "ServerError", "TandemError", "Timeouts",
    "TokenLogprobs", "TopToken", "Unauthenticated", "Unavailable", "Usage",
}  # fmt: skip


def test_the_exported_surface_is_this_and_nothing_else():
    assert set(tandem_client.__all__) == SURFACE
    assert all(hasattr(tandem_client, name) for name in SURFACE)


def test_types_are_exported_too():
    assert resources.files("tandem_client").joinpath("py.typed").is_file()


def test_both_clients_have_the_same_calls():
    def public(kind):
        return {
            name: list(inspect.signature(call).parameters.values())
            for name, call in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert public(Client) == public(AsyncClient)


def test_every_public_name_is_documented():
    for name in SURFACE - {"Messages"}:
        assert inspect.getdoc(getattr(tandem_client, name)), name


@pytest.mark.parametrize("documented", [tandem_client, Client, AsyncClient], ids=lambda d: d.__name__)
def test_the_examples_run(documented, address):
    source = inspect.getdoc(documented).replace("127.0.0.1:8001", address)
    example = doctest.DocTestParser().get_doctest(source, {}, documented.__name__, None, 0)
    assert example.examples
    report: list[str] = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert results.failed == 0, "".join(report)


def test_the_package_depends_on_the_contracts_and_grpc_only():
    allowed = {"tandem", "tandem_client", "grpc", "google", "__future__"}
    package = Path(inspect.getfile(tandem_client)).parent
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {module}"


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", ":8001", "host:0", "host:65536", "http://host:80", "a b:1"]
)
def test_an_address_without_host_and_port_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        Client(address)


@pytest.mark.parametrize(
    ("address", "is_local"),
    [("localhost:1", True), ("127.0.0.1:65535", True), ("[::1]:80", True), ("tandem.example.org:443", False)],
)
def test_a_proxy_is_never_asked_for_a_server_on_this_machine(address, is_local):
    options = dict(Connection(address=address).channel_options(Timeouts()))
    assert (options.get("grpc.enable_http_proxy") == 0) is is_local


def test_a_frozen_server_is_noticed():
    options = dict(Connection(address="h:1").channel_options(Timeouts()))
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]


def test_the_key_is_in_no_representation():
    assert "sk-secret" not in repr(Connection(address="h:1", api_key="sk-secret"))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["connect_s", "first_token_s", "between_tokens_s", "total_s"])
def test_a_timeout_must_be_a_positive_number(name, value):
    with pytest.raises(ValueError, match=name):
        Timeouts(**{name: value})
