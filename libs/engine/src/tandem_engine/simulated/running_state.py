"""The simulated model: a running state per token in place of keys and values, and tokens drawn from all of them.

    state[i] = hash(state[i - 1], token[i])
    token[n] = f(state[0], ..., state[n - 1])

A state depends on every token before it, and a draw on every state, as in a real model. A block that is
wrong, missing or torn therefore changes the tokens that follow. 64-bit integers, one per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from tandem_engine.api import TokenLogprobs

FIRST_STATE = 0x9E3779B97F4A7C15
STATE_BYTES = 8
MASK = 2**64 - 1


def next_state(state: int, token_id: int) -> int:
    """The state after a token that follows `state`."""
    # Python's own hash of numbers is the same in every process, and one call: the model is to cost next to nothing.
    return hash((state, token_id)) & MASK


def next_states(state: int, token_ids: Sequence[int]) -> list[int]:
    """The states after each of these tokens, starting after `state`."""
    states = []
    for token_id in token_ids:
        state = hash((state, token_id)) & MASK  # `next_state`, without a call
        states.append(state)
    return states


# Of states (8 bytes each); the second argument is the checksum of those before them.
checksum = crc32


def draw_token(checksum: int, vocab_size: int, excluded: frozenset[int]) -> int:
    """The token that follows states with this checksum, never an excluded one if it can be helped."""
    drawn = checksum % vocab_size
    if drawn not in excluded:
        return drawn
    for offset in range(min(vocab_size, len(excluded) + 1)):
        token_id = (drawn + offset) % vocab_size
        if token_id not in excluded:
            return token_id
    return drawn


def made_up_logprobs(token_id: int, num_top: int, vocab_size: int) -> TokenLogprobs:
    """Log-probabilities in the right shape: the drawn token first, its neighbours after it."""
    count = min(num_top, vocab_size)
    return TokenLogprobs(
        logprob=-0.5,
        top_token_ids=tuple((token_id + rank) % vocab_size for rank in range(count)),
        top_logprobs=tuple(-0.5 - rank for rank in range(count)),
    )
