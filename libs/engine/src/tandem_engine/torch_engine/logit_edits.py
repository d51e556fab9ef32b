"""What requests change about the logits before a token is drawn: penalties, bias, hidden stop tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tandem_engine.batch import ScheduledSequence


def edit_logits(logits: Tensor, rows: Sequence[ScheduledSequence]) -> None:
    """Apply to `logits` (rows, vocab_size), in place, what each row asks for, in the order of the functions here."""
    _penalise_repetition(
        logits, [i for i, row in enumerate(rows) if row.sampling.repetition_penalty != 1.0], rows
    )
    _penalise_generated(
        logits,
        [i for i, row in enumerate(rows) if row.sampling.presence_penalty or row.sampling.frequency_penalty],
        rows,
    )
    _add_bias(logits, [i for i, row in enumerate(rows) if row.sampling.logit_bias], rows)
    _hide_stop_tokens(
        logits,
        [i for i, row in enumerate(rows) if row.stopping.stop_token_ids and hides_stop_tokens(row)],
        rows,
    )


def hides_stop_tokens(row: ScheduledSequence) -> bool:
    """Whether a row's stop tokens cannot be drawn yet."""
    return row.position - row.num_prompt_tokens < row.stopping.min_tokens


def _penalise_repetition(logits: Tensor, chosen: list[int], rows: Sequence[ScheduledSequence]) -> None:
    """Divide positive and multiply negative logits of every token seen, prompt included (Keskar et al. 2019)."""
    if not chosen:
        return
    places, of_row = _places(logits, chosen, [rows[i].token_ids for i in chosen])
    penalties = _floats(logits, [rows[i].sampling.repetition_penalty for i in chosen])[of_row]
    values = logits.view(-1)[places]
    # A token that was seen twice is written twice, with the same value.
    logits.view(-1)[places] = torch.where(values > 0, values / penalties, values * penalties)


def _penalise_generated(logits: Tensor, chosen: list[int], rows: Sequence[ScheduledSequence]) -> None:
    """Subtract presence and frequency penalties for generated tokens, as OpenAI's API defines them."""
    if not chosen:
        return
    generated = [rows[i].token_ids[rows[i].num_prompt_tokens :] for i in chosen]
    places, counts = torch.unique(_places(logits, chosen, generated)[0], return_counts=True)
    presence, frequency = torch.zeros(2, logits.shape[0], device=logits.device)
    presence[chosen] = _floats(logits, [rows[i].sampling.presence_penalty for i in chosen])
    frequency[chosen] = _floats(logits, [rows[i].sampling.frequency_penalty for i in chosen])
    of_row = places // logits.shape[1]
    logits.view(-1)[places] -= presence[of_row] + frequency[of_row] * counts


def _add_bias(logits: Tensor, chosen: list[int], rows: Sequence[ScheduledSequence]) -> None:
    if not chosen:
        return
    biases = [rows[i].sampling.logit_bias for i in chosen]
    places, _ = _places(logits, chosen, biases)
    logits.view(-1)[places] += _floats(logits, [amount for bias in biases for amount in bias.values()])


def _hide_stop_tokens(logits: Tensor, chosen: list[int], rows: Sequence[ScheduledSequence]) -> None:
    if not chosen:
        return
    places, _ = _places(logits, chosen, [rows[i].stopping.stop_token_ids for i in chosen])
    logits.view(-1)[places] = float("-inf")


def _places(
    logits: Tensor, chosen: Sequence[int], token_ids: Sequence[Iterable[int]]
) -> tuple[Tensor, Tensor]:
    """Indexes into the flattened logits of some tokens of each chosen row, and which of the chosen each is of."""
    flat, lengths = array("q"), []
    for tokens in token_ids:
        before = len(flat)
        flat.extend(tokens)
        lengths.append(len(flat) - before)
    if not flat:
        nothing = torch.empty(0, dtype=torch.int64, device=logits.device)
        return nothing, nothing
    of_row = torch.repeat_interleave(torch.tensor(lengths))
    places = torch.frombuffer(flat, dtype=torch.int64) + torch.tensor(chosen)[of_row] * logits.shape[1]
    return places.to(logits.device), of_row.to(logits.device)


def _floats(logits: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)
