"""What slicing and pipelining must leave alone: equations between runs."""

import itertools
import subprocess
import sys

import pytest
import torch

from blocks.pipeline import (
    SCHEDULES,
    Action,
    Kind,
    Schedule,
)
from blocks.pipeline.schedules import seq1f1b, terapipe, token_zero_bubble
from tests.pipeline.running import run_step, worst_rounding
from tests.pipeline.slice_model import (
    assert_same_bits,
    make_sequences,
    make_stages,
    plain_step,
    take_gradients,
)

F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize(("dtype", "limit"), [(F32, 5e-6), (F64, 1e-13)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_slices_differ_from_the_whole_by_rounding(
    dtype: torch.dtype, limit: float, packed: bool
) -> None:
    assert worst_rounding(dtype, packed) <= limit


def test_one_slice_is_the_whole_bit_for_bit() -> None:
    sequences = make_sequences([(0, 12), (0, 7)])
    stages = make_stages([1, 2], F32)
    plain_step(stages, sequences)
    expected = take_gradients(stages)
    run_step(terapipe(2, (1, 1)), stages, sequences, dtype=F32)
    assert_same_bits(take_gradients(stages), expected)


def test_delays_change_nothing() -> None:
    sequences = make_sequences([(0, 2, 5), (0, 3, 4)])
    stages = make_stages([1, 0, 1], F32)
    schedule = token_zero_bubble(3, sequences.num_slices)
    found = []
    for seed in range(4):
        run_step(schedule, stages, sequences, dtype=F32, max_delay_s=5e-3, delay_seed=seed)
        found.append(take_gradients(stages))
    for other in found[1:]:
        assert_same_bits(other, found[0])


def test_losses_before_a_changed_token_stay() -> None:
    sequences = make_sequences([(0, 3, 5, 9)])
    stages = make_stages([1, 1], F32)
    schedule = seq1f1b(2, sequences.num_slices)
    before = run_step(schedule, stages, sequences, dtype=F32)
    data = sequences.data[0]
    tokens = data["tokens"].clone()
    tokens[5] = (tokens[5] + 1) % 19
    changed = make_sequences([(0, 3, 5, 9)])
    changed.data[0] = {**data, "tokens": tokens}
    after = run_step(schedule, stages, changed, dtype=F32)
    assert [torch.equal(before[key], after[key]) for key in sorted(before)] == [True, True, False]


def test_permuted_sequences_permute_losses() -> None:
    cuts = [(0, 2, 5), (0, 4, 6), (0, 1, 3)]
    stages = make_stages([1, 1], F32)
    schedule = seq1f1b(2, (2, 2, 2))
    sequences = make_sequences(cuts)
    losses = run_step(schedule, stages, sequences, dtype=F32)
    order = [2, 0, 1]
    permuted = make_sequences(cuts)
    permuted.data[:] = [sequences.data[q] for q in order]
    permuted.bounds[:] = [sequences.bounds[q] for q in order]
    found = run_step(schedule, stages, permuted, dtype=F32)
    for (new, old), piece in itertools.product(enumerate(order), range(2)):
        assert torch.equal(found[new, piece], losses[old, piece])


@pytest.mark.parametrize("name", ["one_f_one_b", "token_zero_bubble", "zb_v"])
def test_skip_inputs(name: str) -> None:
    """Stage 0 feeds stages 1, 2 and 3; autograd in one process adds the three gradients."""
    num_ranks = 2 if name == "zb_v" else 4
    sequences = make_sequences([(0, 3, 5), (0, 2, 6)])
    chain = SCHEDULES[name](num_ranks, sequences.num_slices, num_chunks=2 if name == "zb_v" else 1)
    edges = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    schedule = Schedule(name, chain.placement, chain.num_slices, chain.programs, edges)
    stages = make_stages([1, 1, 0, 1], F32)
    plain_step(stages, sequences, edges=edges)
    expected = take_gradients(stages)
    run_step(schedule, stages, sequences, dtype=F32, recompute=[2], max_delay_s=1e-3)
    assert_same_bits(take_gradients(stages), expected)


@pytest.mark.parametrize("name", ["terapipe", "token_zero_bubble"])
@pytest.mark.parametrize("recompute", [(), (0, 1)])
def test_dropout_is_by_content(name: str, recompute: tuple[int, ...]) -> None:
    sequences = make_sequences([(0, 3, 5), (0, 2, 6)])
    stages = make_stages([1, 1], F32, dropout=0.4)
    plain_step(stages, sequences, seed=9, step=3)
    expected = take_gradients(stages)
    schedule = SCHEDULES[name](2, sequences.num_slices)
    step = {"step_index": 3}
    run_step(schedule, stages, sequences, dtype=F32, recompute=recompute, seed=9, step=step)
    assert_same_bits(take_gradients(stages), expected)
    step = {"step_index": 4}
    run_step(schedule, stages, sequences, dtype=F32, recompute=recompute, seed=9, step=step)
    again = take_gradients(stages)
    assert not any(torch.equal(again[name], expected[name]) for name in expected)


def test_recomputation_as_an_action() -> None:
    sequences = make_sequences([(0, 3, 5), (0, 2, 6)])
    stages = make_stages([1, 1], F64, dropout=0.2)
    plain_step(stages, sequences)
    expected = take_gradients(stages)

    def with_recompute(action: Action) -> list[Action]:
        again = [action.on(Kind.RECOMPUTE)] if action.kind is Kind.FULL_BACKWARD else []
        return [*again, action]

    made = seq1f1b(2, sequences.num_slices)
    first = tuple(new for action in made.programs[0] for new in with_recompute(action))
    schedule = Schedule("again", made.placement, made.num_slices, (first, made.programs[1]))
    run_step(schedule, stages, sequences, dtype=F64)
    assert_same_bits(take_gradients(stages), expected)


def test_lanes_are_added_as_a_tree() -> None:
    cuts = [(0, 2, 5), (0, 4, 6), (0, 1, 3), (0, 3, 4)]
    sequences = make_sequences(cuts)
    stages = make_stages([1, 1], F32)
    parts = []
    for q in range(4):
        one = make_sequences(cuts)
        one.data[:], one.bounds[:] = [one.data[q]], [one.bounds[q]]
        plain_step(stages, one)
        parts.append(take_gradients(stages))
    run_step(seq1f1b(2, (2,) * 4), stages, sequences, dtype=F32, step={"lanes": [0, 1, 2, 3]})
    tree = {k: (parts[0][k] + parts[1][k]) + (parts[2][k] + parts[3][k]) for k in parts[0]}
    assert_same_bits(take_gradients(stages), tree)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_tied_weights_are_summed_in_every_lane(num_ranks: int) -> None:
    cuts = [(0, 2, 5), (0, 4, 6)]
    sequences = make_sequences(cuts)
    stages = make_stages([1, 1], F32, tied=True)
    parts = []
    for q in range(2):
        one = make_sequences(cuts)
        one.data[:], one.bounds[:] = [one.data[q]], [one.bounds[q]]
        plain_step(stages, one)
        found = take_gradients(stages)
        parts.append(found["embed.weight"] + found["head.weight"])
    made = SCHEDULES["interleaved"](num_ranks, (2, 2), num_chunks=2 // num_ranks)
    ties = [{0: "embed.weight", 1: "head.weight"}]
    run_step(made, stages, sequences, dtype=F32, ties=ties, step={"lanes": [0, 1]})
    found = take_gradients(stages)
    assert torch.equal(found["embed.weight"], parts[0] + parts[1])
    assert torch.equal(found["head.weight"], parts[0] + parts[1])


def test_gradients_are_added_to_what_is_there() -> None:
    sequences = make_sequences([(0, 2, 5)])
    stages = make_stages([1, 1], F32)
    schedule = seq1f1b(2, (2,))
    run_step(schedule, stages, sequences, dtype=F32)
    once = {name: g.clone() for name, g in take_gradients(stages).items()}
    for _ in range(2):
        run_step(schedule, stages, sequences, dtype=F32)
    assert_same_bits(take_gradients(stages), {name: g + g for name, g in once.items()})


def test_100_optimizer_steps() -> None:
    """In a process of its own, without the type checks of the test run."""
    code = "from tests.pipeline.training import differing; print(differing(100))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
