"""The decode worker's side of a handoff: reserve blocks, have them filled by a prefill worker, go on from its token."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import grpc
from tandem.v1 import cluster_pb2, generation_pb2, prefill_pb2, prefill_pb2_grpc, transfer_pb2
from tandem_common.errors import Unavailable
from tandem_common.generation import Generation
from tandem_common.generation_proto import generation_to_proto
from tandem_common.rpc import error_from_rpc, outgoing_metadata
from tandem_engine.api import FirstToken, Reservation, TokenLogprobs
from tandem_worker.lease import Lease, LeasePhase
from tandem_worker.worker import Worker

from tandem_decode.prefill_channels import PrefillChannels


class NotWorthwhile(Exception):
    """The decode worker holds so much of the prompt already that computing the rest here is quicker."""


@dataclass(frozen=True, kw_only=True)
class RemotePrefill:
    """One attempt to have a prompt computed elsewhere. `generation.request_id` is the engine's id."""

    worker: Worker
    channels: PrefillChannels
    request_id: str
    generation: Generation
    prefill: cluster_pb2.WorkerCard

    async def run(self) -> None:
        """Return when the sequence decodes here.

        Raises NotWorthwhile, a TandemError or TimeoutError when it does not; the caller must then cancel the
        reservation. The lease is settled in either case: nothing is being written any more.
        """
        engine = self.worker.engine
        async with asyncio.timeout(self.worker.config.prefill_timeout_s):
            reservation = await engine.blocks.reserve(self.generation)
            num_held_tokens = reservation.num_held_blocks * engine.info.block_size
            if len(self.generation.token_ids) - num_held_tokens <= engine.info.block_size:
                raise NotWorthwhile
            lease_id = secrets.token_hex(16)
            async with self.worker.leases.hold(
                lease_id=lease_id,
                request_id=self.generation.request_id,
                peer_worker_id=self.prefill.worker_id,
                first_block=reservation.num_held_blocks,
                num_blocks=reservation.num_blocks,
            ) as lease:
                num_cached_tokens, done = await self._call(lease, reservation)
                if lease.phase is not LeasePhase.COMMITTED:
                    raise Unavailable("the prefill worker says that it is done, but blocks are missing")
        # Cached tokens are those that neither worker computed: the longer of the two prefixes that were held.
        first_token = FirstToken(
            token_id=done.first_token_id,
            num_cached_tokens=max(num_held_tokens, num_cached_tokens),
            logprobs=_logprobs_from_proto(done.logprobs) if done.HasField("logprobs") else None,
        )
        await engine.blocks.activate(self.generation.request_id, first_token)

    async def _call(self, lease: Lease, reservation: Reservation) -> tuple[int, prefill_pb2.PrefillDone]:
        """Tokens that the prefill worker had cached, and its last word."""
        request = prefill_pb2.PrefillRequest(
            generation=generation_to_proto(self.generation),
            blocks=self._destination(lease, reservation),
        )
        request.generation.request_id = self.request_id
        leases = self.worker.leases
        num_cached_tokens = 0
        with self.channels.channel(self.prefill) as channel:
            call = prefill_pb2_grpc.PrefillServiceStub(channel).Prefill(
                request,
                timeout=self.worker.config.prefill_timeout_s,
                metadata=outgoing_metadata(self.request_id),
            )
            try:
                async for response in call:
                    leases.renew(lease)
                    match response.WhichOneof("event"):
                        case "accepted":
                            leases.table.stage(lease)
                            num_cached_tokens = response.accepted.num_cached_tokens
                        case "done":
                            return num_cached_tokens, response.done
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from error
            finally:
                call.cancel()
        raise Unavailable("the prefill worker ended the call without a token")

    def _destination(self, lease: Lease, reservation: Reservation) -> prefill_pb2.BlockDestination:
        worker = self.worker
        ticket = worker.tickets.sign(
            transfer_pb2.TicketClaims(
                request_id=lease.request_id,
                lease_id=lease.lease_id,
                source_worker_id=self.prefill.worker_id,
                destination_worker_id=worker.worker_id,
                destination_epoch=worker.epoch,
                first_block=reservation.num_held_blocks,
                num_blocks=reservation.num_blocks,
            )
        )
        return prefill_pb2.BlockDestination(
            worker_id=worker.worker_id,
            epoch=worker.epoch,
            lease_id=lease.lease_id,
            first_block=reservation.num_held_blocks,
            num_blocks=reservation.num_blocks,
            ticket=ticket,
        )


def _logprobs_from_proto(message: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(
        logprob=message.logprob,
        top_token_ids=tuple(message.top_token_ids),
        top_logprobs=tuple(message.top_logprobs),
    )
