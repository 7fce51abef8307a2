"""Options that are left out are no loss: something as quick and as small stays, within the shares
that count as equal."""

from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.plan.search.useful_options import SLOWER, SMALLER, OptionTotal, useful_options

sizes = st.sampled_from([1.0, 1.0004, 1.0008, 1.01, 1.03, 2.0, 2.001, 3.0, 9.0])
some_options = st.lists(st.builds(OptionTotal, sizes, sizes, sizes), min_size=1, max_size=12)


@settings(max_examples=200)
@given(some_options, st.sampled_from([1, 2, 3, 8]))
def test_for_every_option_left_out_another_stays(options: list[OptionTotal], most: int):
    kept = [options[at] for at in useful_options(options, most)]
    for in_flight in (1, 2, 4, 8, most):
        if in_flight > most:
            continue
        for one in options:
            room = one.held(in_flight) / SMALLER
            assert any(
                k.held(in_flight) <= room and k.seconds <= one.seconds * SLOWER for k in kept
            )


@settings(max_examples=200)
@given(some_options, st.sampled_from([1, 2, 8]))
def test_the_smallest_and_the_quickest_stay(options: list[OptionTotal], most: int):
    kept = [options[at] for at in useful_options(options, most)]
    assert min(k.held(1) for k in kept) == min(o.held(1) for o in options)
    assert min(k.seconds for k in kept) <= SLOWER * min(o.seconds for o in options)


def test_nothing_is_useful_of_nothing():
    assert useful_options([], 4) == ()
