"""One engine in a process of its own, told by `bench/engine.py` what to run: JSON lines in, JSON lines out.

    python bench/engine_worker.py tandem|vllm|vllm-compiled|transformers MODEL_DIR cpu|cuda KV_CACHE_BYTES MAX_CONTEXT

It runs in whatever environment has the engine, so it imports nothing else of this repository. A run is
{"prompts": [[token, ...], ...], "max_tokens": n}; its answer is {"begin": s, "end": s, "tokens": n}: seconds from the
start until every sequence had its first token, and until the first had its last, and the tokens made in between.
Before the first run it says {"ready": s}, the seconds that it took to load.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Prompts = list[list[int]]
Result = dict[str, float]
Run = Callable[[Prompts, int], Result]

MAX_SEQUENCES = 64
# As in engine_cells.py; a GPU needs more to be busy, and takes a prompt of 8,192 tokens at once.
STEP_TOKENS = {"cpu": 2048, "cuda": 8192}


class Progress:
    """When every sequence had its first token, and how many tokens followed until the first sequence ended.

    In between all of them decode, and nothing else is computed.
    """

    def __init__(self, num_sequences: int) -> None:
        self._waiting = num_sequences
        self._start = time.perf_counter()
        self._begin = 0.0
        self._end = 0.0
        self._num_tokens = 0

    def step(self, num_first: int, num_tokens: int, num_ended: int) -> None:
        """A step made so many tokens, of which some were first ones, and ended some sequences."""
        if self._begin and not self._end:
            self._num_tokens += num_tokens
        self._waiting -= num_first
        if not self._waiting and not self._begin:
            self._begin = time.perf_counter() - self._start
        if num_ended and not self._end:
            self._end = time.perf_counter() - self._start

    def result(self) -> Result:
        """What `main` answers."""
        return {"begin": self._begin, "end": self._end, "tokens": self._num_tokens}


def tandem(model: str, device: str, kv_cache_bytes: int, max_context: int) -> Run:
    """The torch engine of this repository, through the interface that the worker uses."""
    from tandem_common.generation import Generation, SamplingParams, StoppingParams
    from tandem_engine import create_engine
    from tandem_engine.config import EngineConfig

    config = EngineConfig(
        model=model,
        dtype="bfloat16",
        device=device,
        max_context_tokens=max_context,
        max_step_tokens=STEP_TOKENS[device],
        max_sequences=MAX_SEQUENCES,
        kv_cache_mib=kv_cache_bytes >> 20,
    )
    loop = asyncio.new_event_loop()
    engine = create_engine(config)
    loop.run_until_complete(engine.start())
    steps = engine.steps()
    counter = iter(range(1 << 62))

    async def run_async(prompts: Prompts, max_tokens: int) -> Result:
        progress = Progress(len(prompts))
        for prompt in prompts:
            engine.submit(
                Generation(
                    request_id=f"req-{next(counter):032x}",
                    token_ids=tuple(prompt),
                    num_prompt_tokens=len(prompt),
                    namespace=bytes(16),
                    sampling=SamplingParams(temperature=0.0),
                    stopping=StoppingParams(max_tokens=max_tokens),
                )
            )
        unfinished = len(prompts)
        begun: set[str] = set()
        while unfinished:
            step = await anext(steps)
            if step.failures:
                raise RuntimeError(str(step.failures))
            reports = list(step.reports())
            new = {token.request_id for token in reports} - begun
            begun |= new
            num_ended = sum(token.finish_reason is not None for token in reports)
            progress.step(len(new), len(reports), num_ended)
            unfinished -= num_ended
        return progress.result()

    return lambda prompts, max_tokens: loop.run_until_complete(run_async(prompts, max_tokens))


def vllm(model: str, device: str, kv_cache_bytes: int, max_context: int, *, eager: bool) -> Run:
    """VLLM in one process, stepped by hand."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
    library: Any = importlib.import_module("vllm")  # in its own environment only
    engine = library.LLMEngine.from_engine_args(
        library.EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=max_context,
            max_num_batched_tokens=STEP_TOKENS[device],
            max_num_seqs=MAX_SEQUENCES,
            enable_prefix_caching=False,
            enforce_eager=eager,
            distributed_executor_backend="uni",
            kv_cache_memory_bytes=kv_cache_bytes,
            disable_log_stats=True,
        )
    )
    counter = iter(range(1 << 62))

    def run(prompts: Prompts, max_tokens: int) -> Result:
        progress = Progress(len(prompts))
        params = library.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        for prompt in prompts:
            engine.add_request(str(next(counter)), {"prompt_token_ids": prompt}, params)
        begun: set[str] = set()
        while engine.has_unfinished_requests():
            outputs = [output for output in engine.step() if output.outputs[0].token_ids]
            new = {output.request_id for output in outputs} - begun
            begun |= new
            progress.step(len(new), len(outputs), sum(output.finished for output in outputs))
        return progress.result()

    return run


def transformers(model: str, device: str) -> Run:
    """Plain `generate` on one padded batch; all prompts of a run are equally long."""
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteriaList

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    loaded = loaded.to(device)

    def run(prompts: Prompts, max_tokens: int) -> Result:
        progress = Progress(len(prompts))
        ids = torch.tensor(prompts, device=device)

        steps = iter(range(max_tokens))

        def after_token(*_: object, **__: object) -> torch.Tensor:
            number = next(steps)
            progress.step(
                0 if number else len(prompts), len(prompts), len(prompts) * (number == max_tokens - 1)
            )
            return torch.zeros(len(prompts), dtype=torch.bool, device=device)

        with torch.inference_mode():
            loaded.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([after_token]),
            )
        return progress.result()

    return run


def main() -> None:
    """Load, then answer runs until the input ends."""
    # What the engines print must not get between our lines.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, model, device = sys.argv[1:4]
    kv_cache_bytes, max_context = map(int, sys.argv[4:6])
    start = time.perf_counter()
    engines: dict[str, Callable[[], Run]] = {
        "tandem": lambda: tandem(model, device, kv_cache_bytes, max_context),
        "vllm": lambda: vllm(model, device, kv_cache_bytes, max_context, eager=True),
        "vllm-compiled": lambda: vllm(model, device, kv_cache_bytes, max_context, eager=False),
        "transformers": lambda: transformers(model, device),
    }
    run = engines[name]()
    print(json.dumps({"ready": time.perf_counter() - start}), file=answers)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(run(request["prompts"], request["max_tokens"])), file=answers)
    answers.close()
    os._exit(0)  # some engines' threads would keep the process


if __name__ == "__main__":
    main()
