"""How fast a worker computes, learnt from its own steps.

Every worker fits its step times online and sends the coefficients with its heartbeat; router and planner
predict with them. Prefill steps take a + b·tokens + c·tokens·context, decode steps a + b·sequences + c·KV tokens;
of steps that do both, what decoding adds by the second fit is taken off for the first.

The fit is weighted least squares with non-negative coefficients over sums that forget exponentially:

- a sample weighs by its relative error (Huber's weights), so a garbage collection or a page fault does not
  bend the line, and short steps count as much as long ones;
- the spread that makes a sample an outlier is itself tracked, and memory shrinks while errors keep one sign, so
  a lasting change of speed is followed within some tens of samples;
- a second, long memory with one hundredth of the weight decides only where recent samples say nothing: a worker
  that has decoded one sequence for an hour still knows what sixteen cost;
- the first samples are left out (compilation, cold caches), and early ones are forgotten faster than later ones.

Sources: P. Huber, "Robust Estimation of a Location Parameter" (1964) for the weights; L. Ljung, "System
Identification" (1999), chapter 11, for recursive least squares with forgetting; D. Marquardt (1963) for the ridge
in units of the diagonal, which makes the fit independent of units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from tandem.v1 import cluster_pb2

_NUM_WARMUP_SAMPLES = 3
_MIN_SAMPLES = 8

# Solving costs more than all else about a sample, and one among many changes little.
_NUM_YOUNG_SAMPLES = 64
_SOLVE_EVERY = 4

# Steps outside of this are errors of measurement.
_MIN_DURATION_MS, _MAX_DURATION_MS = 1e-9, 1e9

# Samples after which a weight has fallen to 1/e; the shorter memory holds while errors keep one sign.
_MEMORY = 256.0
_SHORT_MEMORY = 16.0
_LONG_MEMORY = 16_384.0
# Of the long memory's average against the recent average.
_LONG_WEIGHT = 0.01

# Part of the diagonal that is added to it: decides only between columns that the data cannot tell apart.
_RIDGE = 1e-6
# A relative error beyond this many medians loses weight: 1.345 standard deviations of a normal distribution.
_CLIP = 1.345 * 1.4826
# The tracked median starts here, moves by this factor per sample, and stays within these bounds.
_FIRST_SPREAD = 0.25
_SPREAD_STEP = 1.1
_MIN_SPREAD, _MAX_SPREAD = 0.01, 4.0

# Of a step that did both, the part that decoding may account for.
_MAX_EXPLAINED = 0.8

_PAIRS = ((0, 1), (0, 2), (1, 2))
_SINGLES = ((0,), (1,), (2,))


def _is_valid(a_ms: float, b_ms: float, c_ms: float) -> bool:
    return all(math.isfinite(value) and value >= 0.0 for value in (a_ms, b_ms, c_ms))


def prompt_token_context(num_tokens: int, num_context_tokens: int, max_step_tokens: int) -> int:
    """Sum over a prompt's steps of tokens · context: the context grows by one full step each time."""
    num_full, rest = divmod(num_tokens, max_step_tokens)
    full_tokens = num_full * max_step_tokens
    return (
        full_tokens * num_context_tokens
        + max_step_tokens * max_step_tokens * (num_full * (num_full - 1) // 2)
        + rest * (num_context_tokens + full_tokens)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillSpeed:
    """Time of a prefill step: a_ms + b_ms · tokens + c_ms · tokens · context tokens before them."""

    a_ms: float
    b_ms: float
    c_ms: float
    num_samples: int

    def predict_ms(self, num_tokens: int, num_context_tokens: int) -> float:
        """Time of one step that computes `num_tokens` of a prompt after `num_context_tokens` known ones."""
        return self.a_ms + self.b_ms * num_tokens + self.c_ms * num_tokens * num_context_tokens

    def predict_prompt_ms(self, num_tokens: int, num_context_tokens: int, max_step_tokens: int) -> float:
        """Time of a prompt part computed alone, in as many steps of `max_step_tokens` as it takes.

        Nothing to compute takes no time.
        """
        if num_tokens <= 0:
            return 0.0
        num_steps = -(-num_tokens // max_step_tokens)
        token_context = prompt_token_context(num_tokens, num_context_tokens, max_step_tokens)
        return self.a_ms * num_steps + self.b_ms * num_tokens + self.c_ms * token_context

    def to_proto(self) -> cluster_pb2.PrefillSpeed:
        """The message for the heartbeat."""
        return cluster_pb2.PrefillSpeed(
            a_ms=self.a_ms, b_ms=self.b_ms, c_ms=self.c_ms, num_samples=self.num_samples
        )

    @classmethod
    def from_proto(cls, message: cluster_pb2.PrefillSpeed) -> Self | None:
        """What a heartbeat says; None when it cannot be a speed (negative, infinite, not a number)."""
        if not _is_valid(message.a_ms, message.b_ms, message.c_ms):
            return None
        return cls(a_ms=message.a_ms, b_ms=message.b_ms, c_ms=message.c_ms, num_samples=message.num_samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSpeed:
    """Time of a decode step: a_ms + b_ms · sequences + c_ms · KV tokens of all of them."""

    a_ms: float
    b_ms: float
    c_ms: float
    num_samples: int

    def step_ms(self, num_sequences: int, num_kv_tokens: int) -> float:
        """Time of one step of `num_sequences` sequences that hold `num_kv_tokens` together."""
        return self.a_ms + self.b_ms * num_sequences + self.c_ms * num_kv_tokens

    def to_proto(self) -> cluster_pb2.DecodeSpeed:
        """The message for the heartbeat."""
        return cluster_pb2.DecodeSpeed(
            a_ms=self.a_ms, b_ms=self.b_ms, c_ms=self.c_ms, num_samples=self.num_samples
        )

    @classmethod
    def from_proto(cls, message: cluster_pb2.DecodeSpeed) -> Self | None:
        """What a heartbeat says; None when it cannot be a speed (negative, infinite, not a number)."""
        if not _is_valid(message.a_ms, message.b_ms, message.c_ms):
            return None
        return cls(a_ms=message.a_ms, b_ms=message.b_ms, c_ms=message.c_ms, num_samples=message.num_samples)


class SpeedFitter:
    """Learns a worker's speeds from the cost of its steps. Constant time and memory; not thread-safe."""

    def __init__(self) -> None:
        self._prefill = _RobustFit()
        self._decode = _RobustFit()

    def observe(
        self,
        *,
        duration_ms: float,
        num_prefill_tokens: int,
        prefill_token_context: int,
        num_decode_sequences: int,
        decode_kv_tokens: int,
    ) -> None:
        """Takes the cost of one step; arguments as in `tandem_engine.api.StepCost`.

        A step that prefilled and decoded is a prefill step once it is known what decoding adds to it: aggregated
        workers hardly have others. Steps that did neither, or took no time or for ever, teach nothing and are left out.
        """
        if not _MIN_DURATION_MS < duration_ms < _MAX_DURATION_MS:
            return
        if num_prefill_tokens > 0 and num_decode_sequences == 0:
            self._prefill.observe(float(num_prefill_tokens), float(prefill_token_context), duration_ms)
        elif num_decode_sequences > 0 and num_prefill_tokens == 0:
            self._decode.observe(float(num_decode_sequences), float(decode_kv_tokens), duration_ms)
        elif num_prefill_tokens > 0 and (decode := self.decode) is not None:
            added_ms = decode.step_ms(num_decode_sequences, decode_kv_tokens) - decode.a_ms
            # What decoding seems to explain alone says nothing of the rest.
            if added_ms < _MAX_EXPLAINED * duration_ms:
                self._prefill.observe(
                    float(num_prefill_tokens), float(prefill_token_context), duration_ms - added_ms
                )

    @property
    def prefill(self) -> PrefillSpeed | None:
        """The fit of pure prefill steps; None until there are enough samples."""
        fit = self._prefill
        if fit.num_samples < _MIN_SAMPLES:
            return None
        a_ms, b_ms, c_ms = fit.coefficients
        return PrefillSpeed(a_ms=a_ms, b_ms=b_ms, c_ms=c_ms, num_samples=fit.num_samples)

    @property
    def decode(self) -> DecodeSpeed | None:
        """The fit of pure decode steps; None until there are enough samples."""
        fit = self._decode
        if fit.num_samples < _MIN_SAMPLES:
            return None
        a_ms, b_ms, c_ms = fit.coefficients
        return DecodeSpeed(a_ms=a_ms, b_ms=b_ms, c_ms=c_ms, num_samples=fit.num_samples)


class _RobustFit:
    """y ≈ a + b·x1 + c·x2 with a, b, c ≥ 0, one sample at a time."""

    __slots__ = ("_bias", "_long", "_num_seen", "_recent", "_spread", "coefficients")

    def __init__(self) -> None:
        self._recent = _Moments()
        self._long = _Moments()
        # Tracked median of the relative error.
        self._spread = _FIRST_SPREAD
        # Running mean of the errors' signs, from -1 to 1.
        self._bias = 0.0
        self._num_seen = 0
        self.coefficients = (0.0, 0.0, 0.0)

    @property
    def num_samples(self) -> int:
        """Samples the fit rests on; those of the warm-up are not among them."""
        return max(0, self._num_seen - _NUM_WARMUP_SAMPLES)

    def observe(self, x1: float, x2: float, y: float) -> None:
        self._num_seen += 1
        n = self.num_samples
        if n == 0:
            return
        a, b, c = self.coefficients
        predicted = a + b * x1 + c * x2
        # A fit that is far too low must not turn a sample into one of boundless weight.
        scale = max(predicted, 0.25 * y)
        weight = 1.0 / (scale * scale)
        if n > _MIN_SAMPLES // 2:
            error = abs(y - predicted) / scale
            sign = math.copysign(min(1.0, error / self._spread), y - predicted)
            self._bias += (sign - self._bias) / _SHORT_MEMORY
            clip = _CLIP * self._spread
            if error > clip:
                weight *= clip / error
            step = _SPREAD_STEP if error > self._spread else 1.0 / _SPREAD_STEP
            self._spread = min(_MAX_SPREAD, max(_MIN_SPREAD, self._spread * step))
        # 1 - 2/n lets the weight of young samples grow linearly until the memory is full.
        growing = 2.0 / (n + 1.0)
        memory = max(_SHORT_MEMORY, _MEMORY * (1.0 - abs(self._bias)) ** 2)
        self._recent.add(1.0 - max(growing, 1.0 / memory), weight, x1, x2, y)
        self._long.add(1.0 - max(growing, 1.0 / _LONG_MEMORY), weight, x1, x2, y)
        if n < _NUM_YOUNG_SAMPLES or n % _SOLVE_EVERY == 0:
            self.coefficients = _solve(self._recent, self._long)


class _Moments:
    """Weighted sums of products of (1, x1, x2) with each other and with y."""

    __slots__ = ("w", "w1", "w1y", "w2", "w2y", "w11", "w12", "w22", "wy")

    def __init__(self) -> None:
        self.w = self.w1 = self.w2 = self.w11 = self.w12 = self.w22 = 0.0
        self.wy = self.w1y = self.w2y = 0.0

    def add(self, keep: float, weight: float, x1: float, x2: float, y: float) -> None:
        weighted_x1, weighted_x2 = weight * x1, weight * x2
        self.w = keep * self.w + weight
        self.w1 = keep * self.w1 + weighted_x1
        self.w2 = keep * self.w2 + weighted_x2
        self.w11 = keep * self.w11 + weighted_x1 * x1
        self.w12 = keep * self.w12 + weighted_x1 * x2
        self.w22 = keep * self.w22 + weighted_x2 * x2
        self.wy = keep * self.wy + weight * y
        self.w1y = keep * self.w1y + weighted_x1 * y
        self.w2y = keep * self.w2y + weighted_x2 * y


def _solve(recent: _Moments, long: _Moments) -> tuple[float, float, float]:
    """Non-negative least squares of both memories' averages.

    With three unknowns the optimum is found by trying every set of coefficients that may be positive.
    """
    p, q = 1.0 / recent.w, _LONG_WEIGHT / long.w
    # Columns in units of their own root mean square, so that the ridge means the same for each of them.
    d0 = math.sqrt(recent.w * p + long.w * q)
    d1 = math.sqrt(recent.w11 * p + long.w11 * q) or 1.0
    d2 = math.sqrt(recent.w22 * p + long.w22 * q) or 1.0
    m01 = (recent.w1 * p + long.w1 * q) / (d0 * d1)
    m02 = (recent.w2 * p + long.w2 * q) / (d0 * d2)
    m12 = (recent.w12 * p + long.w12 * q) / (d1 * d2)
    v0 = (recent.wy * p + long.wy * q) / d0
    v1 = (recent.w1y * p + long.w1y * q) / d1
    v2 = (recent.w2y * p + long.w2y * q) / d2
    k = 1.0 + _RIDGE

    # Elimination of the symmetric 3 x 3 system with diagonal k.
    l1, l2 = m01 / k, m02 / k
    pivot1 = k - l1 * m01
    e12, u1 = m12 - l1 * m02, v1 - l1 * v0
    pivot2 = k - l2 * m02 - e12 * e12 / pivot1
    z = (v2 - l2 * v0 - e12 * u1 / pivot1) / pivot2
    y = (u1 - e12 * z) / pivot1
    x = (v0 - m01 * y - m02 * z) / k
    if x >= 0.0 and y >= 0.0 and z >= 0.0:
        return x / d0, y / d1, z / d2

    best, best_gain = (0.0, 0.0, 0.0), 0.0
    v = (v0, v1, v2)
    for (i, j), m in zip(_PAIRS, (m01, m02, m12), strict=True):
        determinant = k * k - m * m
        first, second = (k * v[i] - m * v[j]) / determinant, (k * v[j] - m * v[i]) / determinant
        # At a minimum over a subset, the error has fallen by the product of solution and right-hand side.
        gain = first * v[i] + second * v[j]
        if first >= 0.0 and second >= 0.0 and gain > best_gain:
            solution = [0.0, 0.0, 0.0]
            solution[i], solution[j] = first, second
            best, best_gain = (solution[0], solution[1], solution[2]), gain
    for (i,) in _SINGLES:
        gain = v[i] * v[i] / k
        if v[i] > 0.0 and gain > best_gain:
            solution = [0.0, 0.0, 0.0]
            solution[i] = v[i] / k
            best, best_gain = (solution[0], solution[1], solution[2]), gain
    return best[0] / d0, best[1] / d1, best[2] / d2
