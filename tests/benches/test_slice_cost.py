"""Measuring slices of a stage: every one is timed apart, and others are predicted."""

from benches.slice_cost import measure, sample, stage


def test_every_slice_of_every_cut_is_sampled():
    cuts = [(0, 64), (0, 16, 48, 64)]
    found = sample(stage(64, 1, 64), cuts, rounds=1)
    assert [[s[:2] for s in cut] for cut in found] == [[(64, 0)], [(16, 0), (32, 16), (16, 48)]]
    assert all(min(s[2:5]) > 0 for cut in found for s in cut)
    assert found[1][1].bytes_sent == 4 * 64 * 32


def test_the_fit_leaves_out_what_it_predicts():
    found = measure(width=64, num_layers=1, seq_len=64, rounds=1, fit_to=(1, 4), predict=(2,))
    assert found.surface.residual is not None
    assert found.surface.residual.num_samples == 1 + 4
    assert len(found.held_out) == 3 * (2 + 5)
    assert len(found.whole) == 2
    whole, slice_ = (found.surface.as_float()(n, 0) for n in (64, 8))
    assert 0 < slice_ < whole
