"""Asking a router where a request should go, and doing without one when none answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tandem.v1 import cluster_pb2
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import DeadlineExceeded, InvalidRequest, Overloaded, TandemError, Unavailable
from tandem_common.logs import get_logger

from tandem_frontend.models import ModelCatalog
from tandem_frontend.router_link import NoAnswer, Reports, RouterLink

# A router that did not answer in time is not asked for this long: one frozen router must not cost every request
# the whole deadline. (One that is gone refuses at once and costs nothing.)
COOLING_S = 3.0
RETRY_AFTER_MS = 1000

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
        self._links: dict[str, RouterLink] = {}
        self._closing: set[asyncio.Task[None]] = set()  # links of routers that have left
        self._cooling_until: dict[str, float] = {}
        self._router_turn = itertools.count()
        self._worker_turn = itertools.count()
        self._routerless = False
        self._reports = Reports()

    async def route(self, query: pb.RouteQuery) -> Route:
        """Workers for a request; Overloaded, InvalidRequest, or Unavailable when no worker is left."""
        refusal: TandemError | None = None
        for address in self._in_order():
            try:
                response = await self._link(address).ask(query)
            except (Overloaded, InvalidRequest):
                raise
            except TandemError as error:
                if isinstance(error, DeadlineExceeded):
                    self._cooling_until[address] = self._clock() + COOLING_S
                elif not isinstance(error, NoAnswer):
                    refusal = error
                _log.warning("a router gave no route", reason=error.code.name, request_id=query.request_id)
                continue
            self._note_routerless(now=False)
            return Route(
                response.decode,
                response.prefill if response.HasField("prefill") else None,
                response.predicted_ttft_ms,
            )
        return self._take_turns(query, refusal)

    def observe(self, route: Route, ttft_s: float) -> None:
        """Time from a route to the first token: told to a router with the next request."""
        if route.predicted_ttft_ms:
            self._reports.observations.append(
                pb.TtftObservation(predicted_ttft_ms=route.predicted_ttft_ms, observed_ttft_ms=1000 * ttft_s)
            )

    def note_served(self, query: pb.RouteQuery, num_new_tokens: int) -> None:
        """How long an answer became: told to a router with the next request, for the tenant's share."""
        self._reports.served.append(
            pb.ServedTokens(tenant=query.tenant, max_tokens=query.max_tokens, num_new_tokens=num_new_tokens)
        )

    async def close(self) -> None:
        """End all streams."""
        links, self._links = self._links, {}
        await asyncio.gather(*(link.close() for link in links.values()), *self._closing)

    def _link(self, address: str) -> RouterLink:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = RouterLink(address, self._reports)
        return link

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
        """Drop what belongs to routers that have left."""
        for address in self._links.keys() - set(known):
            closing = asyncio.create_task(self._links.pop(address).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._cooling_until.pop(address, None)

    def _take_turns(self, query: pb.RouteQuery, refusal: TandemError | None) -> Route:
        """Without a router; `refusal` is what one said of the request, and is right when we find nobody either."""
        cards = [card for card in self._catalog.decode_workers(query.model) if _allows(query, card)]
        if not cards:
            if isinstance(refusal, Unavailable):
                raise refusal
            raise Unavailable(
                "no worker can take this request now; if it asks for certain workers, labels or a price, ask for less",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._note_routerless(now=True)
        card = cards[next(self._worker_turn) % len(cards)]
        return Route(pb.WorkerRef(worker_id=card.worker_id, epoch=card.epoch, address=card.address))

    def _note_routerless(self, *, now: bool) -> None:
        if now and not self._routerless:
            _log.warning("no router answers; decode workers take turns")
        elif self._routerless and not now:
            _log.info("a router answers again")
        self._routerless = now


def _allows(query: pb.RouteQuery, card: cluster_pb2.WorkerCard) -> bool:
    """Whether a request may go to a worker, as a router judges it: what it requires holds without one too."""
    return (
        card.worker_id not in query.excluded_worker_ids
        and (not query.pinned_worker_ids or card.worker_id in query.pinned_worker_ids)
        and query.required_labels.items() <= card.labels.items()
        and (
            not query.HasField("max_price_per_million_tokens")
            or 0 <= card.price_per_million_tokens <= query.max_price_per_million_tokens
        )
    )
