"""gRPC between services: servers and channels with one set of options, and errors that keep their meaning.

Measured behaviour of grpc.aio that the options answer: a frozen peer is noticed only after 60 s unless
`grpc.http2.ping_timeout_ms` is set beside the keepalive; exceptions in handlers and messages that do not parse reach
the caller as UNKNOWN with internals in the text unless an interceptor maps them (see `interceptor`).
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from tandem_common.config import ConfigError
from tandem_common.errors import TandemError, error_for_code
from tandem_common.interceptor import ErrorMappingInterceptor
from tandem_common.telemetry import current_traceparent

MAX_MESSAGE_BYTES = 32 << 20
# Last-line cap on every server; admission refuses long before.
MAX_CONCURRENT_RPCS = 10_000
KEEPALIVE_MS = 2_000
PING_TIMEOUT_MS = 2_000

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
)
_CHANNEL_OPTIONS = (
    *_OPTIONS,
    # Retrying is the callers' decision: they know what is safe to repeat.
    ("grpc.enable_retries", 0),
    # Despite its name, the time that one attempt to connect may take: a busy peer needs more than the back-off.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Internal traffic never goes through a proxy.
    ("grpc.enable_http_proxy", 0),
)


class RpcServer:
    """A grpc.aio server with our options, interceptors, health and reflection."""

    def __init__(self, service_names: Sequence[str], *, share_port: bool = False) -> None:
        """`service_names` are the full names of the services that will be registered on `server`.

        With `share_port` other processes that say so too may listen on the same port.
        """
        self.server = grpc.aio.server(
            interceptors=[ErrorMappingInterceptor()],
            options=(*_SERVER_OPTIONS, ("grpc.so_reuseport", int(share_port))),
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        self._names = ("", *service_names)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection(
            (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server
        )

    async def start(self, host: str, port: int) -> int:
        """Listen (port 0: any free one); returns the port. Health says NOT_SERVING until `set_serving`."""
        try:
            bound = self.server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise ConfigError(
                f"port = {port}: cannot listen on {host}:{port}; is another program using it? "
                "Choose another, or 0 for any"
            ) from None
        await self.set_serving(False)
        await self.server.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        """Tell health checkers."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in self._names:
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls at once, give running ones `grace_s`, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to host:port; connects when first used, notices a dead or frozen peer within seconds."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def outgoing_metadata(request_id: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata for a call: the request id, and the trace context of the current span."""
    traceparent = current_traceparent()
    return (
        *((("x-request-id", request_id),) if request_id else ()),
        *((("traceparent", traceparent),) if traceparent else ()),
    )


def error_from_rpc(error: grpc.RpcError) -> TandemError:
    """What a failed call means, with the time to retry after if the peer gave one."""
    if not isinstance(error, (grpc.aio.AioRpcError, grpc.Call)):
        return error_for_code(grpc.StatusCode.UNKNOWN, "the call failed")
    retry_after_ms = None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status line
        status = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            retry_after_ms = info.retry_delay.ToMilliseconds()
    return error_for_code(error.code(), error.details() or "", retry_after_ms=retry_after_ms)
