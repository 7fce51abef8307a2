"""Which configurations of a model are worth timing on this machine."""

from recipes.model import ModelConfig
from recipes.serve.parallel import Layout


def layouts(model: ModelConfig, most_ranks: int) -> tuple[tuple[int, int], ...]:
    """Every (tp, pp) in powers of two that the model can be cut into, of at most so many ranks.

    >>> from recipes.model import read_config
    >>> from recipes.model.bundled import bundled_model
    >>> layouts(read_config(bundled_model()), 2)
    ((1, 1), (1, 2), (2, 1))
    """
    found = []
    powers = [2**at for at in range(most_ranks.bit_length()) if 2**at <= most_ranks]
    for tp in powers:
        for pp in powers:
            if tp * pp > most_ranks:
                continue
            try:
                Layout(tp, pp).check(model)
            except ValueError:
                continue
            found.append((tp, pp))
    return tuple(found)
