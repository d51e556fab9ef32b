"""Asking a router where a request should go, and doing without one when none answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import DeadlineExceeded, InvalidRequest, Overloaded, TandemError, Unavailable
from tandem_common.logs import get_logger
from tandem_common.rpc import error_from_rpc, open_channel, outgoing_metadata

from tandem_frontend.models import ModelCatalog

# A router answers, or says with its initial metadata that the request waits for a worker, within the first; it
# never holds a request for as long as the second.
ROUTE_DEADLINE_S = 1.0
ROUTE_WAIT_S = 120.0
_MAX_OBSERVATIONS = 64
_ROUTE_METHOD = f"/{pb.DESCRIPTOR.services_by_name['RouterService'].full_name}/Route"
# A router that did not answer in time is not asked for this long: one frozen router must not cost every request
# the whole deadline. (One that is gone refuses at once and costs nothing.)
COOLING_S = 3.0
RETRY_AFTER_MS = 1000

_RouteCall = grpc.aio.UnaryStreamMultiCallable[pb.RouteRequest, pb.RouteResponse]

_log = get_logger("routing")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes; without `prefill` the decode worker computes the prompt."""

    decode: pb.WorkerRef
    prefill: pb.WorkerRef | None = None
    predicted_ttft_ms: float = 0.0


class RouterClient:
    """Chooses a router for each request. `addresses` gives those known now, host:port.

    A refusal (overloaded, invalid) is passed on. A router that does not answer is followed by the next; when
    none is left, the decode workers of the registry take turns, so that requests are served without any router.
    """

    def __init__(
        self,
        addresses: Callable[[], Iterable[str]],
        catalog: ModelCatalog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._catalog = catalog
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._routers: dict[str, _RouteCall] = {}
        self._cooling_until: dict[str, float] = {}
        self._router_turn = itertools.count()
        self._worker_turn = itertools.count()
        self._routerless = False
        self._observations: deque[pb.TtftObservation] = deque(maxlen=_MAX_OBSERVATIONS)
        self._served: deque[pb.ServedTokens] = deque(maxlen=_MAX_OBSERVATIONS)

    async def route(self, query: pb.RouteQuery) -> Route:
        """Workers for a request; Overloaded, InvalidRequest, or Unavailable when no worker is left."""
        for address in self._in_order():
            try:
                response = await self._ask(address, query)
            except (Overloaded, InvalidRequest):
                raise
            except TandemError as error:
                if isinstance(error, DeadlineExceeded):
                    self._cooling_until[address] = self._clock() + COOLING_S
                _log.warning("a router gave no route", reason=error.code.name, request_id=query.request_id)
                continue
            self._note_routerless(now=False)
            return Route(
                response.decode,
                response.prefill if response.HasField("prefill") else None,
                response.predicted_ttft_ms,
            )
        return self._take_turns(query.model, query.excluded_worker_ids)

    def observe(self, route: Route, ttft_s: float) -> None:
        """Time from a route to the first token: told to a router with the next request."""
        if route.predicted_ttft_ms:
            self._observations.append(
                pb.TtftObservation(predicted_ttft_ms=route.predicted_ttft_ms, observed_ttft_ms=1000 * ttft_s)
            )

    def note_served(self, query: pb.RouteQuery, num_new_tokens: int) -> None:
        """How long an answer became: told to a router with the next request, for the tenant's share."""
        self._served.append(
            pb.ServedTokens(tenant=query.tenant, max_tokens=query.max_tokens, num_new_tokens=num_new_tokens)
        )

    async def close(self) -> None:
        """Close all channels."""
        channels, self._channels = self._channels, {}
        self._routers.clear()
        await asyncio.gather(*(channel.close() for channel in channels.values()))

    async def _ask(self, address: str, query: pb.RouteQuery) -> pb.RouteResponse:
        router = self._routers.get(address)
        if router is None:
            channel = self._channels[address] = open_channel(address)
            # As a stream of one answer: grpc.aio gives a unary call's initial metadata only together with its answer.
            router = self._routers[address] = channel.unary_stream(
                _ROUTE_METHOD,
                request_serializer=pb.RouteRequest.SerializeToString,
                response_deserializer=pb.RouteResponse.FromString,
            )
        observations, served = list(self._observations), list(self._served)
        self._observations.clear()
        self._served.clear()
        call = router(
            pb.RouteRequest(query=query, observations=observations, served=served),
            timeout=ROUTE_WAIT_S,
            metadata=outgoing_metadata(query.request_id),
        )
        try:
            async with asyncio.timeout(ROUTE_DEADLINE_S):
                await call.initial_metadata()
            response = await call.read()
        except TimeoutError:
            call.cancel()
            raise DeadlineExceeded("the router did not answer in time") from None
        except asyncio.CancelledError:
            call.cancel()  # leaves the router's queue
            raise
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        if not isinstance(response, pb.RouteResponse) or not response.decode.worker_id:
            raise Unavailable("the router named no worker")
        return response

    def _in_order(self) -> Sequence[str]:
        """Routers to ask, taking turns, without those that did not answer lately."""
        addresses = sorted(self._addresses())
        self._forget(addresses)
        if not addresses:
            return ()
        first = next(self._router_turn) % len(addresses)
        now = self._clock()
        turned = addresses[first:] + addresses[:first]
        return [address for address in turned if self._cooling_until.get(address, now) <= now]

    def _forget(self, known: Iterable[str]) -> None:
        """Drop what belongs to routers that have left; their channels close when collected."""
        gone = self._channels.keys() - set(known)
        for address in gone:
            del self._channels[address], self._routers[address]
            self._cooling_until.pop(address, None)

    def _take_turns(self, model: str, excluded: Iterable[str]) -> Route:
        without = set(excluded)
        cards = [card for card in self._catalog.decode_workers(model) if card.worker_id not in without]
        if not cards:
            raise Unavailable("no worker can take this request now", retry_after_ms=RETRY_AFTER_MS)
        self._note_routerless(now=True)
        card = cards[next(self._worker_turn) % len(cards)]
        return Route(pb.WorkerRef(worker_id=card.worker_id, epoch=card.epoch, address=card.address))

    def _note_routerless(self, *, now: bool) -> None:
        if now and not self._routerless:
            _log.warning("no router answers; decode workers take turns")
        elif self._routerless and not now:
            _log.info("a router answers again")
        self._routerless = now
