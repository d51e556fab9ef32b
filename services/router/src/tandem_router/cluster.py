"""The router's memory of the cluster: registry records and bookings in, views out. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import prompt_token_context

from tandem_router.bookings import BookedLoad, Booking, Bookings
from tandem_router.crowding import PromptTraffic
from tandem_router.query import Decision, Query
from tandem_router.records import facts_from_card, links_from_beat, load_from_beat, speeds_from_beat
from tandem_router.speeds import with_borrowed_speeds
from tandem_router.view import ClusterView, WorkerFacts, WorkerRole, WorkerView

# No request id begins so.
_ALIKE = "alike:"


class Cluster:
    """Keeps the view up to date with the registry and with this router's own decisions.

    A registry that is empty all of a sudden has more likely been restarted than lost every worker: the workers known
    before stay in the view for `empty_grace_s`, in which the living ones register again.
    """

    def __init__(self, bookings: Bookings, *, empty_grace_s: float) -> None:
        self.bookings = bookings
        self._empty_grace_s = empty_grace_s
        self._emptied_at_s: float | None = None
        self._registered: Mapping[str, RegisteredWorker] = {}
        self._facts: dict[str, WorkerFacts] = {}
        self._worker_views: dict[str, WorkerView] = {}  # as registered, with speeds of their own only
        self._traffic: dict[str, PromptTraffic] = {}
        self._view = ClusterView()

    @property
    def view(self) -> ClusterView:
        """What is known now; never changed afterwards."""
        return self._view

    @property
    def registered(self) -> Mapping[str, RegisteredWorker]:
        """The records that the view was made from."""
        return self._registered

    def observe(self, registered: Mapping[str, RegisteredWorker], now_s: float) -> None:
        """Take what the registry says now, and drop the bookings that this makes superfluous."""
        registered = self._bridged(registered, now_s)
        self.bookings.retain(registered)
        self.bookings.expire(now_s)
        facts: dict[str, WorkerFacts] = {}
        views: dict[str, WorkerView] = {}
        for worker_id, record in registered.items():
            known = self._registered.get(worker_id)
            unchanged = known is not None and known.card == record.card
            its_facts = self._facts.get(worker_id) if unchanged else facts_from_card(record.card)
            if its_facts is None:
                continue
            facts[worker_id] = its_facts
            if record.beat is not None:
                self.bookings.observe(worker_id, its_facts.epoch, record.beat.accepted_request_ids, now_s)
            booked = self.bookings.total(worker_id)
            view = self._worker_views.get(worker_id)
            same = unchanged and known is not None and known.beat == record.beat
            if view is None or not same:
                view = _worker_view(its_facts, record.beat, booked, 1000 * now_s)
            elif view.load != load_from_beat(record.beat, booked):
                view = _worker_view(its_facts, record.beat, booked, view.seen_ms)
            views[worker_id] = view
        self._registered, self._facts, self._worker_views = registered, facts, views
        pools = ClusterView.of(views.values()).pools
        self._traffic = {model: traffic for model, traffic in self._traffic.items() if model in pools}
        self._view = ClusterView(
            pools={model: tuple(with_borrowed_speeds(pool)) for model, pool in pools.items()},
            crowding_per_ms={
                model: traffic.crowding_per_ms(now_s, _num_computing(pools[model]))
                for model, traffic in self._traffic.items()
            },
        )

    def book(self, query: Query, decision: Decision, now_s: float) -> list[Booking]:
        """Put the load of a decision on its workers; what was booked, for other routers to know."""
        changed = self.bookings.withdraw(query.request_id) if query.excluded_worker_ids else set()
        bookings = [
            Booking(worker_id=worker.facts.worker_id, epoch=worker.facts.epoch, load=load, time_s=now_s)
            for worker, load in booked_loads(query, decision)
        ]
        self.bookings.add(query.request_id, bookings)
        self._traffic.setdefault(query.model, PromptTraffic()).add(
            now_s, decision.chosen.terms.get("prefill") if decision.unit == "ms" else None
        )
        changed.update(booking.worker_id for booking in bookings)
        self._refresh_loads(query.model, changed)
        return bookings

    def book_shared(self, model: str, requests: Iterable[tuple[str, Sequence[Booking]]]) -> None:
        """Put the load of other routers' decisions on the workers that are known, in their present incarnations.

        A request that was routed anew is booked where it is now, and no longer where it was.
        """
        changed: set[str] = set()
        for request_id, bookings in requests:
            known = [b for b in bookings if (f := self._facts.get(b.worker_id)) and f.epoch == b.epoch]
            changed |= self.bookings.withdraw(request_id) if self.bookings.has(request_id) else set()
            self.bookings.add(request_id, known)
            for booking in known[:1]:
                self._traffic.setdefault(model, PromptTraffic()).add(booking.time_s)
            changed.update(booking.worker_id for booking in known)
        self._refresh_loads(model, changed)

    def expect_alike(self, request_id: str, model: str, bookings: Sequence[Booking], count: int) -> None:
        """Until `settle`: `count` other routers may be deciding the same now, since they know the same."""
        self.bookings.add(
            _ALIKE + request_id, [replace(booking, load=booking.load.times(count)) for booking in bookings]
        )
        self._refresh_loads(model, {booking.worker_id for booking in bookings})

    def settle(self, model: str, request_ids: Iterable[str]) -> None:
        """What others decided until then is known now."""
        changed: set[str] = set()
        for request_id in request_ids:
            changed |= self.bookings.withdraw(_ALIKE + request_id)
        self._refresh_loads(model, changed)

    def _refresh_loads(self, model: str, worker_ids: Iterable[str]) -> None:
        loads = {
            worker_id: load_from_beat(self._registered[worker_id].beat, self.bookings.total(worker_id))
            for worker_id in worker_ids
        }
        self._view = self._view.with_loads(model, loads)

    def _bridged(
        self, registered: Mapping[str, RegisteredWorker], now_s: float
    ) -> Mapping[str, RegisteredWorker]:
        """Within the grace after the registry came back empty: what was known before, and what is there again."""
        if not registered and self._registered and self._emptied_at_s is None:
            self._emptied_at_s = now_s
        if self._emptied_at_s is None:
            return registered
        if (
            now_s - self._emptied_at_s < self._empty_grace_s
            and not registered.keys() >= self._registered.keys()
        ):
            return {**self._registered, **registered}
        self._emptied_at_s = None
        return registered


def _num_computing(pool: Sequence[WorkerView]) -> int:
    """Workers that prompts are sent to in the first place."""
    return sum(worker.facts.role is not WorkerRole.DECODE for worker in pool) or len(pool)


def booked_loads(query: Query, decision: Decision) -> list[tuple[WorkerView, BookedLoad]]:
    """What a decision adds to its worker or workers."""
    chosen = decision.chosen
    computing = chosen.computing.facts
    num_uncached = query.num_tokens - chosen.predicted_cached_tokens
    prompt = BookedLoad(
        num_sequences=1,
        num_prefilling=1,
        queued_prefill_tokens=num_uncached,
        queued_prefill_context=prompt_token_context(
            num_uncached, chosen.predicted_cached_tokens, computing.max_step_tokens
        ),
        num_blocks=computing.blocks_of(query.num_tokens),
    )
    if chosen.prefill is None:
        return [(chosen.decode, prompt)]
    answer = BookedLoad(
        num_sequences=1,
        decode_kv_tokens=query.num_tokens,
        num_blocks=chosen.decode.facts.blocks_of(query.num_tokens),
    )
    return [(chosen.prefill, prompt), (chosen.decode, answer)]


def _worker_view(
    facts: WorkerFacts, beat: pb.WorkerBeat | None, booked: BookedLoad, seen_ms: float
) -> WorkerView:
    prefill_speed, decode_speed = speeds_from_beat(beat)
    return WorkerView(
        facts=facts,
        load=load_from_beat(beat, booked),
        prefill_speed=prefill_speed,
        decode_speed=decode_speed,
        links=links_from_beat(beat),
        seen_ms=seen_ms,
    )
