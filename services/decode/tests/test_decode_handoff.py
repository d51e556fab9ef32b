"""A prompt is prefilled by one worker and decoded by another, over each transport."""

import pytest
from tandem.v1 import generation_pb2
from worker_harness import BLOCK_SIZE, generate, generation, running_worker


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("num_prompt_tokens", [1, 16, 17, 500])
async def test_a_handoff_gives_the_tokens_of_a_local_run(
    redis_url: str, transport: str, num_prompt_tokens: int
) -> None:
    async with (
        running_worker(redis_url, "prefill", transports=(transport,)) as prefill,
        running_worker(redis_url, "decode", transports=(transport,)) as decode,
        running_worker(redis_url, "both") as both,
    ):
        local = await generate(both, generation(num_prompt_tokens))
        remote = await generate(decode, generation(num_prompt_tokens), await prefill.ref())
        assert len(local.token_ids) == 20
        assert remote.token_ids == local.token_ids
        assert remote.finished is not None
        assert remote.finished.reason == generation_pb2.FINISH_REASON_LENGTH
        assert remote.started is not None
        # A prompt of no more than one block is not worth a handoff.
        by = prefill if num_prompt_tokens > BLOCK_SIZE else decode
        assert remote.started.prefill_worker_id == by.worker_id
        assert remote.started.num_cached_tokens == 0
        for worker in (prefill, decode, both):
            await worker.assert_quiet()
