import pytest

from recipes.train import override, tiny
from recipes.train.config import resolve
from recipes.train.dial import dial
from recipes.train.layout import check_layout


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 8, 12, 20, 32])
def test_every_depth_is_a_run(depth):
    config = dial(tiny(), depth)
    check_layout(resolve(config))
    assert (config.num_layers, config.hidden_size) == (depth, 64 * depth)
    assert config.hidden_size // config.num_heads == 64
    assert 2 * config.num_kv_heads <= max(2, config.num_heads)


def test_the_dial_grows_everything_and_lowers_the_rate_a_little():
    small, large = dial(tiny(), 4), dial(tiny(), 16)
    assert large.tokens_per_step > small.tokens_per_step
    assert large.num_steps > small.num_steps
    assert 0.5 < large.learning_rate / small.learning_rate < 2.5


def test_fields_given_by_name_win_wherever_they_stand():
    for settings in (["depth=4", "num_steps=7"], ["num_steps=7", "depth=4"]):
        config = override(tiny(), settings)
        assert (config.num_layers, config.num_steps) == (4, 7)


def test_a_depth_of_none_is_refused():
    with pytest.raises(ValueError, match="layers"):
        override(tiny(), ["depth=0"])
