"""Step times follow from figures that can be worked out by hand."""

import pytest
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_engine.api import StepCost
from tandem_sim.hardware import GPUS, Efficiency
from tandem_sim.models import MODELS
from tandem_sim.step_time import FittedStepTime, Roofline, kv_tokens

# Everything at its peak, nothing besides.
IDEAL = Efficiency(
    compute=1.0, attention=1.0, bandwidth=1.0, peer=1.0, step_s=0.0, collective_s=0.0, memory=1.0
)


def decode(num_sequences: int, kv: int) -> StepCost:
    return StepCost(duration_ms=0, num_decode_sequences=num_sequences, decode_kv_tokens=kv)


def prefill(num_tokens: int, context: int = 0) -> StepCost:
    return StepCost(duration_ms=0, num_prefill_tokens=num_tokens, prefill_token_context=num_tokens * context)


def test_kv_bytes_per_token_are_those_of_the_published_configurations() -> None:
    sizes = {name: model.kv_bytes_per_token for name, model in MODELS.items()}
    assert sizes == {
        "llama-3-8b": 131_072,
        "llama-3-70b": 327_680,
        "qwen3-32b": 262_144,
        "gpt-oss-120b": 36_864,
    }


def test_one_decoding_sequence_takes_the_time_to_read_the_weights() -> None:
    roofline = Roofline(GPUS["H100"], MODELS["llama-3-8b"], IDEAL)
    assert roofline.step_s(decode(1, 0), 0) == pytest.approx(2 * 8.03e9 / 3.35e12)


def test_a_long_prompt_takes_the_time_of_its_products_and_its_attention() -> None:
    roofline = Roofline(GPUS["H100"], MODELS["llama-3-8b"], IDEAL)
    products = 2 * 8.03e9 * 8192 / 989.5e12
    attention = 4 * 32 * 32 * 128 * (8192 * 8192 / 2) / 989.5e12
    assert roofline.step_s(prefill(8192), 8192 * 8192 // 2) == pytest.approx(products + attention)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", MODELS)
def test_more_work_never_takes_less_time(gpu: str, model: str) -> None:
    roofline = Roofline(GPUS[gpu], MODELS[model])
    for less, more in (
        (decode(1, 100), decode(2, 200)),
        (decode(8, 8000), decode(8, 80_000)),
        (prefill(64), prefill(4096)),
        (prefill(512, 0), prefill(512, 30_000)),
    ):
        assert 0 < roofline.step_s(less, 0) < roofline.step_s(more, 0)


def test_a_worker_at_half_speed_takes_twice_as_long() -> None:
    full, half = (Roofline(GPUS["H200"], MODELS["llama-3-70b"], speed=speed) for speed in (1.0, 0.5))
    assert half.step_s(decode(4, 4000), 0) == pytest.approx(2 * full.step_s(decode(4, 4000), 0))


def test_few_tokens_read_few_experts() -> None:
    model = MODELS["gpt-oss-120b"]
    assert model.weight_bytes_read(1) == pytest.approx(65.3e9 - 61e9 * (1 - 4 / 128))
    assert model.weight_bytes_read(4096) == pytest.approx(65.3e9)


def test_fits_are_applied_as_the_router_reads_them() -> None:
    fitted = FittedStepTime(
        prefill=PrefillSpeed(a_ms=2, b_ms=0.1, c_ms=0.001, num_samples=9),
        decode=DecodeSpeed(a_ms=5, b_ms=1, c_ms=0.01, num_samples=9),
    )
    assert fitted.step_s(prefill(100, 50), 0) == pytest.approx((2 + 10 + 5) / 1e3)
    assert fitted.step_s(decode(3, 100), 0) == pytest.approx((5 + 3 + 1) / 1e3)
    mixed = StepCost(duration_ms=0, num_prefill_tokens=100, num_decode_sequences=3, decode_kv_tokens=100)
    assert fitted.step_s(mixed, 0) == pytest.approx((2 + 10 + 3 + 1) / 1e3)


def test_a_model_that_leaves_no_room_is_refused() -> None:
    assert kv_tokens(GPUS["H100"], MODELS["llama-3-8b"]) == int((72e9 - 16.06e9) / 131_072)
    with pytest.raises(ValueError, match="does not fit"):
        kv_tokens(GPUS["L40S"], MODELS["gpt-oss-120b"])
