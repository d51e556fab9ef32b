import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_load.histogram import LogHistogram, percentile


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentiles_of_a_histogram_are_those_of_its_values_within_one_percent(
    values: list[float], share: float
) -> None:
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    exact = percentile(values, share)
    assert exact is not None
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.0101)


def test_there_is_no_percentile_of_nothing() -> None:
    assert LogHistogram().percentile(0.5) is None
    assert percentile([], 0.5) is None
