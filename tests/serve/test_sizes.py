"""Sizes as people write them."""

import pytest

from recipes.serve.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("17", 17), ("1k", 1024), ("256MiB", 2**28), ("1.5 GiB", 3 * 2**29), ("2gb", 2**31)],
)
def test_units_are_powers_of_1024(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1e3", "5 parsecs", "MiB"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="expected a number"):
        parse_bytes(text)


@pytest.mark.parametrize("count", [0, 1023, 1024, 2**28, 2**40])
def test_sizes_survive_the_round_trip_roughly(count):
    assert abs(parse_bytes(format_bytes(count).replace(" ", "")) - count) <= count * 0.05
