"""Drawing the next token of each row, all rows at once.

The order is: penalties (repetition, then presence and frequency), logit bias, stop tokens hidden until
min_tokens; log-probabilities are of what results. Then temperature, top-k, top-p, min-p (in the order of
transformers), and a draw by inverse transform with the row's own random number. A row's token depends on nothing
but its own logits, parameters, tokens, seed and position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tandem_engine.api import TokenLogprobs
from tandem_engine.batch import DrawnToken, ScheduledSequence
from tandem_engine.torch_engine.random_numbers import uniform


def draw_tokens(logits: Tensor, rows: Sequence[ScheduledSequence]) -> list[DrawnToken]:
    """One token per row of `logits` (rows, vocab_size), float32; `logits` is overwritten."""
    _penalise(logits, rows)
    _bias(logits, rows)
    _hide_stop_tokens(logits, rows)
    chosen = logits.argmax(-1)  # (rows,)
    if random := [index for index, row in enumerate(rows) if not row.sampling.greedy]:
        at = _index(random, logits)
        chosen[at] = _draw(logits.index_select(0, at), [rows[index] for index in random])
    logprobs = _logprobs(logits, chosen, rows)
    token_ids: list[int] = chosen.tolist()
    return [
        DrawnToken(token_id, logprobs.get(index) if logprobs else None)
        for index, token_id in enumerate(token_ids)
    ]


def _penalise(logits: Tensor, rows: Sequence[ScheduledSequence]) -> None:
    """Apply the three penalties where a row asks for them.

    Repetition divides positive and multiplies negative logits of every token seen, prompt included (Keskar et
    al. 2019); presence and frequency subtract from those of generated tokens, as OpenAI's API defines them.
    """
    for index, row in enumerate(rows):
        sampling = row.sampling
        if sampling.repetition_penalty != 1.0:
            seen = _index(sorted(set(row.token_ids)), logits)
            values = logits[index, seen]
            penalty = sampling.repetition_penalty
            logits[index, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts = Counter(row.token_ids[row.num_prompt_tokens :])
            amounts = [sampling.presence_penalty + sampling.frequency_penalty * n for n in counts.values()]
            logits[index, _index(list(counts), logits)] -= torch.tensor(amounts, device=logits.device)


def _bias(logits: Tensor, rows: Sequence[ScheduledSequence]) -> None:
    for index, row in enumerate(rows):
        if bias := row.sampling.logit_bias:
            amounts = torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
            logits[index, _index(list(bias), logits)] += amounts


def _hide_stop_tokens(logits: Tensor, rows: Sequence[ScheduledSequence]) -> None:
    for index, row in enumerate(rows):
        num_generated = row.position - row.num_prompt_tokens
        if num_generated < row.stopping.min_tokens and row.stopping.stop_token_ids:
            logits[index, _index(list(row.stopping.stop_token_ids), logits)] = float("-inf")


def _draw(logits: Tensor, rows: Sequence[ScheduledSequence]) -> Tensor:
    """Token ids (rows,) drawn from the filtered distributions of rows that are not greedy."""
    temperatures = torch.tensor([[row.sampling.temperature] for row in rows], device=logits.device)
    # The maximum is taken off first, so that no temperature, however low, leads to infinite scores.
    scores = (logits - logits.amax(-1, keepdim=True)) / temperatures
    filtered = [
        index
        for index, row in enumerate(rows)
        if row.sampling.top_k or row.sampling.top_p < 1.0 or row.sampling.min_p
    ]
    if filtered:
        at = _index(filtered, logits)
        scores[at] = _filter(scores.index_select(0, at), [rows[index] for index in filtered])
    # Sums in order of token id: a change of rounding in the logits moves the borders by no more than that.
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    uniforms = torch.tensor(
        [[uniform(row.sampling.seed, row.position)] for row in rows],
        dtype=torch.float64,
        device=logits.device,
    )
    drawn = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True).squeeze(1)
    # Logits that are not numbers lead past the end; the others in the batch must not suffer from that.
    return drawn.clamp_(max=logits.shape[1] - 1)


def _filter(scores: Tensor, rows: Sequence[ScheduledSequence]) -> Tensor:
    """Scores with -inf for the tokens that top-k, top-p and min-p drop; ties with the last one kept stay."""
    vocab_size, device = scores.shape[1], scores.device
    top_k = torch.tensor([[min(row.sampling.top_k or vocab_size, vocab_size)] for row in rows], device=device)
    top_p = torch.tensor([[row.sampling.top_p] for row in rows], dtype=torch.float64, device=device)
    min_p = torch.tensor([[row.sampling.min_p] for row in rows], device=device)
    ordered = scores.sort(-1, descending=True).values
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, top_k - 1), float("-inf"))
    probabilities = ordered.softmax(-1)
    # A token stays while those likelier than it have less than top_p between them: the first always does.
    before = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
    num_kept = ((before < top_p) & (ordered > float("-inf"))).sum(-1, keepdim=True).clamp_(min=1)
    lowest = ordered.gather(-1, num_kept - 1)
    # The likeliest token's score is 0, so a share of its probability is a distance from it.
    lowest = torch.maximum(lowest, min_p.log())
    return scores.masked_fill(scores < lowest, float("-inf"))


def _logprobs(logits: Tensor, chosen: Tensor, rows: Sequence[ScheduledSequence]) -> dict[int, TokenLogprobs]:
    """Log-probabilities of the rows that ask for them, by row."""
    wanted = {
        index: row.sampling.logprobs for index, row in enumerate(rows) if row.sampling.logprobs is not None
    }
    if not wanted:
        return {}
    at = _index(list(wanted), logits)
    logprobs = logits.index_select(0, at).log_softmax(-1)
    of_chosen: list[float] = logprobs.gather(-1, chosen[at].unsqueeze(1)).squeeze(1).tolist()
    top = logprobs.topk(min(max(wanted.values()), logits.shape[1]), -1)
    top_values: list[list[float]] = top.values.tolist()
    top_ids: list[list[int]] = top.indices.tolist()
    return {
        index: TokenLogprobs(
            logprob=of_chosen[i],
            top_token_ids=tuple(top_ids[i][:count]),
            top_logprobs=tuple(top_values[i][:count]),
        )
        for i, (index, count) in enumerate(wanted.items())
    }


def _index(values: list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
