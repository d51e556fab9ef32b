"""The official `openai` package, used as its documentation shows."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest


@pytest.fixture
async def client(system) -> AsyncIterator[openai.AsyncOpenAI]:
    await system.add_worker("w1", num_cached_tokens=4)
    await system.start()
    async with openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGES = [{"role": "user", "content": "Tell me a story."}]


async def test_a_chat(client, answer):
    completion = await client.chat.completions.create(model="tandem-tiny", messages=MESSAGES)
    assert completion.choices[0].message.content == answer
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens_details.cached_tokens == 4
    follow_up = [*MESSAGES, completion.choices[0].message, {"role": "user", "content": "Go on."}]
    again = await client.chat.completions.create(model="tandem-tiny", messages=follow_up, max_tokens=2)
    assert again.usage.completion_tokens == 2


async def test_a_streamed_chat(client, answer):
    stream = await client.chat.completions.create(
        model="tandem-tiny",
        messages=MESSAGES,
        stream=True,
        temperature=0,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    assert chunks[-1].usage.total_tokens > 0
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_the_packages_own_streaming_helper(client, answer):
    async with client.chat.completions.stream(model="tandem-tiny", messages=MESSAGES) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == answer


async def test_completions(client, answer):
    completion = await client.completions.create(model="tandem-tiny", prompt="Once", max_tokens=100)
    assert completion.choices[0].text == answer
    stream = await client.completions.create(model="tandem-tiny", prompt="Once", max_tokens=100, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == answer


async def test_log_probabilities_of_chats(client, answer):
    completion = await client.chat.completions.create(
        model="tandem-tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    content = completion.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer
    assert all(len(token.top_logprobs) == 2 for token in content)
    stream = await client.chat.completions.create(
        model="tandem-tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [t async for c in stream if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == content


async def test_log_probabilities_of_completions(client):
    completion = await client.completions.create(model="tandem-tiny", prompt="Once", max_tokens=5, logprobs=1)
    logprobs = completion.choices[0].logprobs
    assert "".join(logprobs.tokens) == completion.choices[0].text
    assert logprobs.token_logprobs == [-0.5] * 5
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset[2] == len("".join(logprobs.tokens[:2]))


async def test_models(client):
    models = await client.models.list()
    assert [model.id for model in models.data] == ["tandem-tiny"]
    assert (await client.models.retrieve("tandem-tiny")).owned_by == "tandem"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


async def test_errors_arrive_as_the_packages_own(client, system):
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.chat.completions.create(model="tandem-tiny", messages=MESSAGES, temperature=9)
    assert refusal.value.param == "temperature"
    assert refusal.value.request_id.startswith("req-")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nobody", messages=MESSAGES)
    system.workers[0].end_session_after = 3
    with pytest.raises(openai.APIError, match="worker"):
        async for _ in await client.chat.completions.create(
            model="tandem-tiny", messages=MESSAGES, stream=True
        ):
            pass
