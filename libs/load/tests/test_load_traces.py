from pathlib import Path

import pytest
from tandem_load.traces import TraceError, load_trace


def test_a_mooncake_trace_is_read_from_its_first_request_on(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'
        '{"timestamp": 1500, "input_length": 30, "output_length": 0, "hash_ids": [2]}\n'
    )
    first, second = load_trace(path)
    assert (first.time_s, first.num_prompt_tokens, first.segments) == (0.0, 700, (0, 1))
    assert first.token_ids()[510:514] == [0, 0, 1, 1]
    assert (second.time_s, second.num_output_tokens) == (0.5, 1)
    assert len(load_trace(path, 1)) == 1


def test_an_azure_trace_is_read_with_its_seven_digits(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.9305900,396,109\n"
    )
    first, second = load_trace(path)
    assert (first.num_prompt_tokens, first.num_output_tokens) == (374, 44)
    assert second.time_s == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("a.jsonl", '{"timestamp": 0}\n', "line 1"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,2\n", "line 2"),
        ("a.jsonl", "", "no requests"),
        ("a.csv.gz", "not gzip", "cannot read"),
    ],
)
def test_a_bad_trace_is_refused_with_what_is_wrong(tmp_path: Path, name: str, text: str, wrong: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError, match=wrong):
        load_trace(path)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        load_trace(tmp_path / "none.jsonl")
