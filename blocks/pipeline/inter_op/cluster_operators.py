"""``cluster_operators``: operators to layers, cut where little flows. Needs numpy, no torch."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from blocks._checks import check, check_count, fail, reading
from blocks.pipeline.capped_sum import capped_sums_of_parts, least_largest

Number = int | float


class Value(NamedTuple):
    """What one operator makes and others read.

    producer: the operator.
    consumers: operators after it.
    num_bytes: of the value.
    """

    producer: int
    consumers: Collection[int]
    num_bytes: Number


@dataclasses.dataclass(frozen=True)
class OperatorClusters:
    """Contiguous operators as layers.

    bounds: first operator of every layer and, last, the number of operators.
    entering_bytes: of the values that every layer takes from layers before it.
    flops: of every layer.
    """

    bounds: tuple[int, ...]
    entering_bytes: tuple[float, ...]
    flops: tuple[float, ...]

    @property
    def num_layers(self) -> int:
        return len(self.flops)

    def layer_of(self, operator: int) -> int:
        """The layer an operator is in."""
        inside = 0 <= operator < self.bounds[-1]
        check(inside, "operator", f"below {self.bounds[-1]}", operator)
        return sum(bound <= operator for bound in self.bounds[1:])

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "OperatorClusters":
        """
        Raises:
            ValueError: data that is none.
        """
        with reading("operator clusters", data, cls):
            return cls(**{name: tuple(values) for name, values in data.items()})


def cluster_operators(
    flops: Sequence[Number],
    values: Sequence[Value],
    num_layers: int,
    *,
    imbalance: Number = 0.5,
    is_heavy: Sequence[bool] | None = None,
    min_heavy: int = 3,
    tie: Number = 1e-4,
) -> OperatorClusters:
    """The cut into layers with the least largest number of bytes entering one of them.

    A value counts once for every layer that reads it and did not make it. No layer has more than
    ``1 + imbalance`` times the mean FLOPs. Among cuts whose largest is the same up to ``tie`` the
    one with the least sum is taken, and of those the one with the most even FLOPs (least squares).

    Args:
        flops: of every operator, in an order in which they can run.
        values: what flows between operators; weights and inputs of the model are none.
        num_layers: layers to make.
        imbalance: share by which a layer may exceed the mean.
        is_heavy: for every operator whether it is a matrix product, convolution or the like.
        min_heavy: of these in every layer, where ``is_heavy`` is given and there are enough.
        tie: share.

    Raises:
        ValueError: fewer operators than layers; no cut keeps to the limits, with the least
            imbalance that can be kept.

    Reference: Zheng et al. 2022, Alpa, section 5.2, equation 6.

    >>> chain = [Value(n, (n + 1,), size) for n, size in enumerate([8, 1, 8, 8, 2])]
    >>> cluster_operators([1] * 6, chain, 3).bounds
    (0, 2, 5, 6)
    >>> cluster_operators([1] * 6, chain, 3, imbalance=0).bounds
    (0, 2, 4, 6)
    """
    import numpy as np

    count = len(flops)
    check_count("num_layers", num_layers)
    check(count >= num_layers, "flops", f"at least {num_layers} operators", count)
    for operator, number in enumerate(flops):
        check(number >= 0, f"flops of operator {operator}", "at least 0", number)
    check(imbalance >= 0 and tie >= 0, "imbalance and tie", "at least 0", (imbalance, tie))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(flops, float))])
    work = sums[None] - sums[:, None]
    allowed = np.arange(count + 1)[:, None] < np.arange(count + 1)[None]
    if is_heavy is not None:
        check(len(is_heavy) == count, "is_heavy", f"{count} of them", len(is_heavy))
        heavy = np.concatenate([[0], np.cumsum(np.asarray(is_heavy, int))])
        needed = min(min_heavy, int(heavy[-1]) // num_layers)
        allowed &= heavy[None] - heavy[:, None] >= needed
    limit = (1 + imbalance) * sums[-1] / num_layers
    fits = allowed & (work <= limit * (1 + 1e-12))
    entering = entering_bytes(count, values)
    table = np.where(fits, entering, np.inf)
    least = least_largest([table] * num_layers)
    if least is None:
        raise _too_even(np.where(allowed, work, np.inf), num_layers, imbalance, sums[-1])
    cap = least.largest * (1 + tie)
    ties = np.where(fits, work, 0.0) ** 2
    found = capped_sums_of_parts([table] * num_layers, [cap], ties=ties)[0]
    assert found is not None, "the cut with the least largest keeps to the cap"
    spans = list(itertools.pairwise(found.bounds))
    return OperatorClusters(
        found.bounds,
        tuple(float(entering[i, j]) for i, j in spans),
        tuple(float(work[i, j]) for i, j in spans),
    )


def entering_bytes(num_operators: int, values: Sequence[Value]) -> Any:
    """Bytes that operators ``i`` up to ``j`` take from operators before them, ``[i, j]``."""
    import numpy as np

    found = np.zeros((num_operators + 1, num_operators + 1))
    for producer, consumers, num_bytes in values:
        after = producer
        for consumer in sorted(set(consumers)):
            inside = 0 <= producer < consumer < num_operators
            hint = f"an operator after {producer}, below {num_operators}"
            check(inside, "consumer of a value", hint, consumer)
            # Runs that begin after the reader before: the value comes in with this reader.
            found[after + 1 : consumer + 1, consumer + 1] += num_bytes
            after = consumer
    return found.cumsum(axis=1)


def _too_even(work: Any, num_layers: int, imbalance: Number, total: float) -> ValueError:
    least = least_largest([work] * num_layers)
    assert least is not None, "there are enough operators, and heavy ones, for all layers"
    needed = least.largest * num_layers / total - 1
    return fail("imbalance", f"at least {needed:.4g} for {num_layers} layers", imbalance)
