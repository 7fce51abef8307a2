"""Peak bytes as predicted against the tensors that are alive."""

import pytest

from tests.pipeline.counted_bytes import error


@pytest.mark.parametrize(("family", "rank"), [("seq1f1b", 0), ("zb_h1", 3), ("gpipe", 1)])
def test_predicted_peaks_are_within_two_percent(family: str, rank: int) -> None:
    assert error(family, rank, num_sequences=4) <= 0.02
