"""Drawing the next token of each row, all rows at once.

The order is: the edits of `logit_edits` (log-probabilities are of their result), then temperature, top-k, top-p,
min-p (in the order of transformers), and a draw by inverse transform with the row's own random number. A row's
token depends on nothing but its own logits, parameters, tokens, seed and position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.api import TokenLogprobs
from tandem_engine.batch import Draw, DrawnToken, ScheduledSequence
from tandem_engine.torch_engine.logit_edits import edit_logits, hides_stop_tokens
from tandem_engine.torch_engine.random_numbers import uniform

# How many of the likeliest tokens top-k and top-p look at, before they look at all.
_NUM_CANDIDATES = (256, 8192)
# A draw first finds the chunk of the vocabulary, then the token in it.
_CHUNK_TOKENS = 512


def draws_likeliest(row: ScheduledSequence) -> bool:
    """Whether a row takes its likeliest token and needs nothing else of its logits."""
    sampling = row.sampling
    return (
        sampling.temperature == 0.0
        and sampling.logprobs is None
        and sampling.repetition_penalty == 1.0
        and not (sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias)
        and not (row.stopping.stop_token_ids and hides_stop_tokens(row))
    )


def draw_tokens(logits: Tensor, rows: Sequence[ScheduledSequence]) -> list[Draw]:
    """One token per row of `logits` (rows, vocab_size), float32, contiguous; `logits` is overwritten."""
    edit_logits(logits, rows)
    random = [index for index, row in enumerate(rows) if not row.sampling.greedy]
    if len(random) == len(rows):
        chosen = _draw(logits, rows)
    else:
        chosen = logits.max(-1).indices
        if random:
            at = torch.tensor(random, device=logits.device)
            chosen[at] = _draw(logits[at], [rows[index] for index in random])
    drawn: list[Draw] = chosen.tolist()
    for index, logprobs in _logprobs(logits, chosen, rows).items():
        drawn[index] = DrawnToken(int(chosen[index]), logprobs)
    return drawn


def _draw(logits: Tensor, rows: Sequence[ScheduledSequence]) -> Tensor:
    """Token ids (rows,) drawn from the filtered distributions of rows that are not greedy."""
    device = logits.device
    temperatures = torch.tensor([[row.sampling.temperature] for row in rows], device=device)
    # The maximum is taken off first, so that no temperature, however low, leads to infinite scores.
    scores = (logits - logits.amax(-1, keepdim=True)).div_(temperatures)
    filtered = [
        index
        for index, row in enumerate(rows)
        if row.sampling.top_k or row.sampling.top_p < 1.0 or row.sampling.min_p
    ]
    if filtered:
        at = torch.tensor(filtered, device=device)
        kept = scores[at]
        hidden = kept < _lowest_kept(kept, [rows[index] for index in filtered])
        scores[at] = kept.masked_fill_(hidden, float("-inf"))
    uniforms = [[uniform(row.sampling.seed, row.position)] for row in rows]
    return _inverse_transform(scores.exp_(), torch.tensor(uniforms, dtype=torch.float64, device=device))


def _inverse_transform(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The tokens (rows,) at the given shares (rows, 1) of each row's total weight.

    Weights (rows, vocab_size) are summed in order of token id, so that a change of rounding in the logits
    moves the borders between tokens by no more than that. A token without weight is never chosen.
    """
    num_rows, vocab_size = weights.shape
    weights = F.pad(weights, (0, -vocab_size % _CHUNK_TOKENS)).view(num_rows, -1, _CHUNK_TOKENS)
    chunk_weights = weights.sum(-1).double()  # (rows, chunks)
    chunk_ends = chunk_weights.cumsum(-1)
    targets = uniforms * chunk_ends[:, -1:]
    # Weights that are not numbers lead past the end; other rows must not suffer from that.
    chunk = torch.searchsorted(chunk_ends, targets, right=True).clamp_(max=weights.shape[1] - 1)
    ends = weights[torch.arange(num_rows, device=weights.device), chunk.squeeze(1)].cumsum(
        -1, dtype=torch.float64
    )
    # The chunk's own sum may differ from its last border by rounding; the target stays inside.
    share = (targets - chunk_ends.gather(-1, chunk)) / chunk_weights.gather(-1, chunk) + 1.0
    inner = share.clamp_(0.0, 1.0 - 2.0**-48) * ends[:, -1:]
    token = torch.searchsorted(ends, inner, right=True) + chunk * _CHUNK_TOKENS
    return token.squeeze(1).clamp_(max=vocab_size - 1)


def _lowest_kept(scores: Tensor, rows: Sequence[ScheduledSequence]) -> Tensor:
    """The lowest score (rows, 1) that top-k, top-p and min-p keep; ties with the last one kept stay.

    `scores` (rows, vocab_size) are logarithms of weights, the likeliest token's being 0.
    """
    vocab_size, device = scores.shape[1], scores.device
    top_k = torch.tensor([[min(row.sampling.top_k or vocab_size, vocab_size)] for row in rows], device=device)
    top_p = torch.tensor([[row.sampling.top_p] for row in rows], dtype=torch.float64, device=device)
    min_p = torch.tensor([[row.sampling.min_p] for row in rows], device=device)
    total = scores.exp().sum(-1, keepdim=True).double()
    lowest = torch.full_like(min_p, float("-inf"))
    sorting = [i for i, row in enumerate(rows) if row.sampling.top_k or row.sampling.top_p < 1.0]
    if sorting:
        at = torch.tensor(sorting, device=device)
        lowest[at] = _last_of_top(scores[at], top_k[at], top_p[at], total[at])
    return torch.maximum(lowest, min_p.log())


def _last_of_top(scores: Tensor, top_k: Tensor, top_p: Tensor, total: Tensor) -> Tensor:
    """The lowest score (rows, 1) that top-k and top-p keep; `total` (rows, 1) is the weight of all tokens.

    Looks at the likeliest few tokens first, and at more only for rows where these do not settle it.
    """
    vocab_size = scores.shape[1]
    lowest = torch.empty_like(scores[:, :1])
    open_rows = torch.arange(scores.shape[0], device=scores.device)
    for num_candidates in (*(n for n in _NUM_CANDIDATES if n < vocab_size), vocab_size):
        ordered = scores[open_rows].topk(num_candidates, -1).values  # (open rows, candidates), falling
        k, p = top_k[open_rows], top_p[open_rows]
        weights = ordered.exp().double()
        inside = torch.arange(num_candidates, device=scores.device) < k
        # Top-p is a share of what top-k leaves.
        mass = torch.where(k == vocab_size, total[open_rows], (weights * inside).sum(-1, keepdim=True))
        # A token stays while those likelier than it have less than top_p between them: the first always does.
        kept = inside & (weights.cumsum(-1) - weights < p * mass)
        num_kept = kept.sum(-1, keepdim=True)
        lowest[open_rows] = ordered.gather(-1, (num_kept - 1).clamp_(min=0))
        settled = (k <= num_candidates) | ((k == vocab_size) & (num_kept < num_candidates))
        open_rows = open_rows[~settled.squeeze(1)]
        if not len(open_rows):
            break
    return lowest


def _logprobs(logits: Tensor, chosen: Tensor, rows: Sequence[ScheduledSequence]) -> dict[int, TokenLogprobs]:
    """Log-probabilities of the rows that ask for them, by row."""
    wanted = {
        index: row.sampling.logprobs for index, row in enumerate(rows) if row.sampling.logprobs is not None
    }
    if not wanted:
        return {}
    at = torch.tensor(list(wanted), device=logits.device)
    logprobs = logits[at].log_softmax(-1)
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
