"""Tells other routers what this one booked, and books what they tell: so several routers act as one.

One Redis stream carries it all. Entries live for seconds: a router that starts reads those of the last few, and one
that cannot reach Redis goes on with what it knows itself. Nothing waits for this: a decision is sent after it was
answered, together with those made in the same moment.

Routers that know the same choose the same, so a worker that is behind would be given as many requests at once as there
are routers. Until the stream returns a booking of its own, with all that others decided before it, a router therefore
takes every other one to have booked the same.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import redis.asyncio
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2 as pb
from tandem_common.generation import RequestClass
from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.redis_line import line_of

from tandem_router.bookings import BookedLoad, Booking
from tandem_router.cluster import Cluster
from tandem_router.elsewhere import MAX_TENANTS, Line, WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.kv_records import START, StreamId
from tandem_router.stream_reader import ENTRIES_PER_READ, Entries, StreamReader, entries_of

_FIELD = b"bookings"
_MAX_STREAM = 10_000
_MAX_UNSENT = 4096
_MAX_PER_ENTRY = 256
_GATHER_S = 0.001
# While no other router was heard of for so long: one that starts reads the bookings of seconds anyway.
_LISTEN_S = 2.0
_ALONE_S = 0.25
_MAX_OWN_ENTRIES = 64
_BACKOFF_S = 0.5
_MAX_TOKENS = 2**40
_MAX_CONTEXT = 2**60
_MAX_OTHERS = 15
_MAX_LINES = 64
_SETTLE_S = 0.1  # the stream takes milliseconds; if not, it tells nothing that is worth waiting for

_log = get_logger("bookings")


class _Unsent(NamedTuple):
    """A decision that the others are to hear of."""

    request_id: str
    model: str
    tenant: str
    charged_tokens: int
    bookings: Sequence[Booking]


class BookingExchange:
    """Shares the bookings of one cluster view; `run` by its owner."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: Keys,
        router_id: str,
        cluster: Cluster,
        shares: FairShares,
        *,
        max_age_s: float,
        elsewhere: WaitingElsewhere | None = None,
        on_news: Callable[[], None] = lambda: None,
        reader: StreamReader | None = None,
    ) -> None:
        """`max_age_s`: how old bookings may be that a router starts with; also how long the stream outlives them.

        `elsewhere` is told who waits at other routers; `on_news` is called after others started requests; `reader` may
        have a client of its own, which waits for longer.
        """
        self._line = line_of(client)
        self._reader = reader or StreamReader(client)
        self._key = keys.bookings()
        self._router_id = router_id
        self._cluster = cluster
        self._shares = shares
        self._max_age_s = max_age_s
        self._elsewhere = elsewhere or WaitingElsewhere()
        self.on_news = on_news
        self._corrections: dict[str, int] = {}  # by tenant, to be told with the next entry
        self._queue: pb.SharedQueue | None = None  # to be told with the next entry
        self._told_queue = pb.SharedQueue()
        self._others: dict[str, float] = {}  # routers heard of, and when
        self._listening_until_s = 0.0
        self._own_entries: deque[bytes] = deque(maxlen=_MAX_OWN_ENTRIES)
        self._unsettled: deque[tuple[float, str, str]] = deque()  # time, model, request id
        self._unsent: deque[_Unsent] = deque(maxlen=_MAX_UNSENT)
        self._wake = asyncio.Event()

    def share(
        self, request_id: str, model: str, tenant: str, charged: int, bookings: Iterable[Booking]
    ) -> None:
        """Send soon; the oldest unsent ones make room while Redis is away."""
        bookings = list(bookings)
        if self._others:
            self._cluster.expect_alike(request_id, model, bookings, min(len(self._others), _MAX_OTHERS))
            self._unsettled.append((time.monotonic(), model, request_id))
        # Made into messages when they are sent, many at once: cheaper than in between.
        self._unsent.append(_Unsent(request_id, model, tenant, charged, bookings))
        self._wake.set()

    def tell_correction(self, tenant: str, num_tokens: int) -> None:
        """Tell others soon that a tenant was served more, or fewer, tokens than it was charged."""
        if tenant in self._corrections or len(self._corrections) < MAX_TENANTS:
            self._corrections[tenant] = self._corrections.get(tenant, 0) + num_tokens
            self._wake.set()

    def tell_waiting(self, waiting: Mapping[Line, Iterable[str]]) -> None:
        """Tell others soon who waits here; to be called again every second as long as anybody does."""
        queue = pb.SharedQueue(
            lines=[
                pb.SharedLine(
                    model=model,
                    batch=request_class is RequestClass.BATCH,
                    tenants=itertools.islice(tenants, MAX_TENANTS),
                )
                for (model, request_class), tenants in waiting.items()
            ]
        )
        if queue.lines or self._told_queue.lines:
            self._queue = self._told_queue = queue
            self._wake.set()

    async def run(self) -> None:
        """Send and receive until cancelled; both go on after Redis was away."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            tasks.create_task(self._receive())

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            if self._is_alone():
                await self._line.ticks.rest(_ALONE_S)
            else:
                await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            while self._unsent or self._queue is not None or self._corrections:
                count = min(len(self._unsent), _MAX_PER_ENTRY)
                try:
                    await self._append([self._unsent.popleft() for _ in range(count)])
                except (RedisError, OSError):
                    # Bookings are worth seconds: what could not be sent now is not worth a second try.
                    await asyncio.sleep(_BACKOFF_S)

    async def _append(self, bookings: Sequence[_Unsent]) -> bytes:
        """Write an entry; its id."""
        queue, self._queue = self._queue, None
        told, self._corrections = self._corrections, {}
        corrections = [pb.SharedCorrection(tenant=tenant, tokens=tokens) for tenant, tokens in told.items()]
        entry = pb.SharedBookings(
            router_id=self._router_id,
            bookings=map(_to_proto, bookings),
            queue=queue,
            corrections=corrections,
        )
        record = entry.SerializeToString()
        entry_id, _ = answers = await self._line.ask(
            ("XADD", self._key, "MAXLEN", "~", _MAX_STREAM, "*", _FIELD, record),
            ("PEXPIRE", self._key, max(1000, round(2000 * self._max_age_s))),
        )
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        self._own_entries.append(entry_id)
        return bytes(entry_id)

    async def _receive(self) -> None:
        cursor = START
        away, warned = True, False
        while True:
            self._settle()
            try:
                if away:
                    # Others hear of this router from now on, and the id tells the time by the clock of Redis.
                    now = StreamId.parse(await self._append([]))
                    oldest = StreamId(max(0, now.milliseconds - round(1000 * self._max_age_s)), 0)
                    # What was read before is not booked and charged again, unless Redis came back with an older clock.
                    cursor = cursor if oldest < cursor <= now else oldest
                    self._listening_until_s = time.monotonic() + _LISTEN_S
                    away = False
                entries = await self._read(cursor)
            except (RedisError, OSError) as error:
                if not warned:
                    _log.warning("bookings of other routers cannot be read", error=str(error))
                away = warned = True
                await asyncio.sleep(_BACKOFF_S)
                continue
            warned = False
            for entry_id, fields in entries:
                cursor = StreamId.parse(entry_id)
                # What comes back from Redis matters to those who expect something of others.
                if self._unsettled or entry_id not in self._own_entries:
                    self._apply(fields.get(_FIELD, b""))
            if len(entries) < ENTRIES_PER_READ and self._is_alone():
                await self._line.ticks.rest(_ALONE_S)
            else:
                await asyncio.sleep(0)

    def _is_alone(self) -> bool:
        """Whether no other router was heard of for a while: then nobody is in a hurry."""
        return not self._others and time.monotonic() > self._listening_until_s

    async def _read(self, cursor: StreamId) -> Entries:
        """What came after the cursor; waits for it unless this router is alone, when it looks now and then."""
        if self._is_alone():
            (answer,) = await self._line.ask(
                ("XRANGE", self._key, f"({cursor}", "+", "COUNT", ENTRIES_PER_READ)
            )
            return entries_of(answer)
        return [
            entry for _, entries in await self._reader.read({self._key.encode(): cursor}) for entry in entries
        ]

    def _settle(self, returned: Collection[str] = ()) -> None:
        """End what was expected of others: for own bookings that the stream returned, and for those too old."""
        now_s = time.monotonic()
        done: dict[str, list[str]] = {}
        while self._unsettled:
            since_s, model, request_id = self._unsettled[0]
            if request_id not in returned and now_s - since_s < _SETTLE_S:
                break
            done.setdefault(model, []).append(request_id)
            self._unsettled.popleft()
        for model, request_ids in done.items():
            self._cluster.settle(model, request_ids)
        for router_id in [
            known for known, seen_s in self._others.items() if now_s - seen_s > self._max_age_s
        ]:
            del self._others[router_id]

    def _apply(self, record: bytes) -> None:
        """Book what another router says; what cannot be read is skipped."""
        try:
            entry = pb.SharedBookings.FromString(record)
        except DecodeError:
            return
        now_s = time.monotonic()
        if entry.router_id == self._router_id:
            # Everything that others decided before this is known now.
            self._settle({booking.request_id for booking in entry.bookings})
            return
        router_id = entry.router_id[:128]
        self._others[router_id] = now_s
        if entry.HasField("queue"):
            self._elsewhere.note(router_id, _waiting(entry.queue), now_s)
        for correction in entry.corrections[:MAX_TENANTS]:
            self._shares.correct(correction.tenant, max(-_MAX_TOKENS, min(_MAX_TOKENS, correction.tokens)))
        by_model: dict[str, list[tuple[str, list[Booking]]]] = {}
        for shared in entry.bookings[:_MAX_PER_ENTRY]:
            if not shared.request_id or len(shared.request_id) > 128:
                continue
            bookings = [_booking(load, now_s) for load in shared.loads[:2]]
            by_model.setdefault(shared.model, []).append((shared.request_id, bookings))
            if shared.tenant:
                self._shares.charge(shared.tenant, min(shared.charged_tokens, _MAX_TOKENS))
        for model, requests in by_model.items():
            self._cluster.book_shared(model, requests)
        self.on_news()


def _waiting(queue: pb.SharedQueue) -> dict[Line, list[str]]:
    return {
        (line.model, RequestClass.BATCH if line.batch else RequestClass.INTERACTIVE): line.tenants[
            :MAX_TENANTS
        ]
        for line in queue.lines[:_MAX_LINES]
    }


def _booking(load: pb.BookedLoad, now_s: float) -> Booking:
    return Booking(
        worker_id=load.worker_id,
        epoch=load.epoch,
        load=BookedLoad(
            num_sequences=load.num_sequences,
            num_prefilling=load.num_prefilling,
            queued_prefill_tokens=min(load.queued_prefill_tokens, _MAX_TOKENS),
            queued_prefill_context=min(load.queued_prefill_context, _MAX_CONTEXT),
            decode_kv_tokens=min(load.decode_kv_tokens, _MAX_TOKENS),
            num_blocks=load.num_blocks,
        ),
        time_s=now_s,
    )


def _to_proto(unsent: _Unsent) -> pb.SharedBooking:
    return pb.SharedBooking(
        request_id=unsent.request_id,
        model=unsent.model,
        tenant=unsent.tenant,
        charged_tokens=unsent.charged_tokens,
        loads=[
            pb.BookedLoad(
                worker_id=booking.worker_id,
                epoch=booking.epoch,
                num_sequences=booking.load.num_sequences,
                num_prefilling=booking.load.num_prefilling,
                queued_prefill_tokens=booking.load.queued_prefill_tokens,
                queued_prefill_context=booking.load.queued_prefill_context,
                decode_kv_tokens=booking.load.decode_kv_tokens,
                num_blocks=booking.load.num_blocks,
            )
            for booking in unsent.bookings
        ],
    )
