import pytest

from recipes.hf.__main__ import losses, main, step_bytes


def test_both_runs_learn_the_batch_alike() -> None:
    plain, ours = losses(ours=False), losses(ours=True)
    assert plain[-1] < 0.1 * plain[0]
    assert ours == pytest.approx(plain, rel=0.05, abs=1e-3)  # thirty steps part them a little
    assert ours[:3] == pytest.approx(plain[:3], rel=1e-5)


def test_the_step_of_a_large_vocabulary_is_measured(capsys) -> None:
    assert main(["--memory-of", "patched", "--vocab-size", "512"]) == 0
    assert int(capsys.readouterr().out) >= 0
    assert step_bytes(512, ours=False) >= 0
