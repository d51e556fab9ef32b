"""The whole engine: scheduler, pool, thread and torch runner give what transformers gives."""

import asyncio
from pathlib import Path

import pytest
import torch
import transformers
from tandem_common.generation import FinishReason, Generation, SamplingParams, StoppingParams
from tandem_common.hashing import namespace_root
from tandem_engine import EngineConfig, FirstToken, ModelError, PrefillMode, create_engine

GREEDY = SamplingParams(temperature=0.0)
ROOT = namespace_root("test")
SHIPPED_MODEL = Path(__file__).parents[4] / "models" / "tandem-tiny"


def generation(request_id, token_ids, num_tokens, sampling=GREEDY, num_prompt_tokens=None, stop=()):
    return Generation(
        request_id=request_id,
        token_ids=list(token_ids),
        num_prompt_tokens=num_prompt_tokens or len(token_ids),
        namespace=ROOT,
        sampling=sampling,
        stopping=StoppingParams(max_tokens=num_tokens, stop_token_ids=frozenset(stop)),
    )


class Running:
    """A started engine and what it has reported, by request."""

    def __init__(self, path, **settings):
        defaults = {
            "model": str(path),
            "device": "cpu",
            "threads": 1,
            "block_size": 8,
            "num_blocks": 64,
            "poison_freed_blocks": True,
        }
        self.engine = create_engine(EngineConfig(**(defaults | settings)))
        self.tokens = {}
        self.cached = {}
        self.ended = {}
        self.preempted = set()

    async def __aenter__(self):
        await self.engine.start()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        await self.engine.stop()
        await self._reader

    async def _read(self):
        async for step in self.engine.steps():
            waiting = {r.request_id for r in self.engine.snapshot().requests if r.phase == "waiting"}
            self.preempted |= waiting & self.tokens.keys()
            for failure in step.failures:
                self.ended[failure.request_id] = failure.error
            for output in step.reports():
                self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
                if output.num_cached_tokens is not None:
                    self.cached[output.request_id] = output.num_cached_tokens
                if output.finish_reason is not None:
                    self.ended[output.request_id] = output.finish_reason

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.002)

    async def run(self, *generations):
        """Submit together; the tokens of each, in order."""
        for request in generations:
            self.engine.submit(request)
        await self.until(lambda: all(request.request_id in self.ended for request in generations))
        return [self.tokens[request.request_id] for request in generations]


async def test_concurrent_requests_get_the_tokens_of_transformers(tiny_model, random_prompt):
    model = tiny_model("llama3")
    prompts = [random_prompt(length, seed=length) for length in (1, 9, 30, 64, 65)]
    async with Running(model.path, max_step_tokens=24) as running:
        requests = [generation(f"r{i}", prompt, 12 + i) for i, prompt in enumerate(prompts)]
        tokens = await running.run(*requests)
        assert tokens == [model.greedy(prompt, 12 + i) for i, prompt in enumerate(prompts)]
        assert set(running.ended.values()) == {FinishReason.LENGTH}


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(seed=11, temperature=0.8, repetition_penalty=1.1)]
)
async def test_preempted_requests_get_the_same_tokens(sampling, tiny_model, random_prompt):
    model = tiny_model("qwen3")
    requests = [generation(f"r{i}", random_prompt(20, seed=i), 40, sampling) for i in range(2)]
    async with Running(model.path) as roomy:
        undisturbed = await roomy.run(*requests)
        assert not roomy.preempted
    # Two sequences of 60 tokens need 15 or 16 blocks; here are 10, so that one must give way.
    async with Running(model.path, num_blocks=10) as tight:
        assert await tight.run(*requests) == undisturbed
        assert tight.preempted
    if sampling is GREEDY:
        assert undisturbed == [model.greedy(request.token_ids, 40) for request in requests]


# Windows are shorter than the prefix that is cached, and than the prompt, which is computed in chunks.
@pytest.mark.parametrize(
    "name", ["llama3", "mistral-window", "qwen2-window", "gemma2", "gemma3", "phi3-window", "qwen3-moe"]
)
@pytest.mark.parametrize("max_step_tokens", [512, 5])
async def test_a_cached_prefix_changes_nothing_but_the_work(name, max_step_tokens, tiny_model, random_prompt):
    model = tiny_model(name)
    prefix = random_prompt(50)
    async with Running(model.path, max_step_tokens=max_step_tokens) as running:
        await running.run(generation("first", prefix, 4))
        for seed in range(3):
            prompt = prefix + random_prompt(7, seed)
            assert await running.run(generation(f"r{seed}", prompt, 10)) == [model.greedy(prompt, 10)]
            assert running.cached[f"r{seed}"] == 48
        # The whole prompt is cached but for the block that the first token needs computed.
        assert await running.run(generation("again", prefix[:48], 10)) == [model.greedy(prefix[:48], 10)]
        assert running.cached["again"] == 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_handoff_between_two_engines_changes_nothing(dtype, tiny_model, random_prompt):
    path = tiny_model("qwen2").path
    prompt = random_prompt(45)
    sampling = SamplingParams(seed=5)
    async with Running(path, dtype=dtype) as alone:
        [expected] = await alone.run(generation("alone", prompt, 20, sampling))
    async with Running(path, dtype=dtype) as prefill, Running(path, dtype=dtype) as decode:
        request = generation("moved", prompt, 20, sampling)
        prefill.engine.submit(request, PrefillMode.HOLD)
        reservation = await decode.engine.blocks.reserve(request)
        await prefill.until(lambda: "moved" in prefill.tokens)

        async with prefill.engine.blocks.reading("moved", 0, reservation.num_blocks) as views:
            payload = b"".join(views)
        prefill.engine.cancel("moved")
        async with decode.engine.blocks.writing("moved", 0, reservation.num_blocks) as views:
            for view in views:
                view[:], payload = payload[: len(view)], payload[len(view) :]
        await decode.engine.blocks.activate(
            "moved", FirstToken(token_id=prefill.tokens["moved"][0], num_cached_tokens=0)
        )
        await decode.until(lambda: "moved" in decode.ended)
        assert decode.tokens["moved"] == expected


async def test_a_broken_model_is_reported_by_start(tmp_path):
    engine = create_engine(EngineConfig(model=str(tmp_path)))
    with pytest.raises(ModelError, match=r"config\.json"):
        await engine.start()
    await engine.stop()


async def test_the_shipped_model_speaks_as_in_transformers():
    reference = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED_MODEL, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    questions = ("Tell me a story about a fox.", "What is the capital of France?", "Who are you?", "2 + 3 =")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for question in questions
    ]
    expected = []
    for prompt in prompts:
        with torch.inference_mode():
            out = reference.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=40,
            )
        tokens = out[0, len(prompt) :].tolist()
        expected.append(tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens)
    async with Running(SHIPPED_MODEL, block_size=16) as running:
        requests = [
            generation(f"r{i}", prompt, 40, stop=[tokenizer.eos_token_id]) for i, prompt in enumerate(prompts)
        ]
        assert await running.run(*requests) == expected
    assert all(len(tokens) > 3 for tokens in expected)
