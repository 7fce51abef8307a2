"""Parts of a placement that know nothing of one another."""

from collections.abc import Sequence

from blocks.sched.placement.group import Group


def components(groups: Sequence[Group]) -> list[list[int]]:
    """Indices of groups that share a model, directly or through others; each list rising.

    A request is only ever sent to groups that host its model, so that what happens in one part
    changes nothing in another.

    >>> from blocks.sched.profile import Configuration
    >>> one = Configuration(1, 1)
    >>> hosted = [("a", "b"), ("c",), ("b",), ()]
    >>> components([Group((i,), one, models) for i, models in enumerate(hosted)])
    [[0, 2], [1], [3]]
    """
    leader = list(range(len(groups)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    first: dict[str, int] = {}
    for index, group in enumerate(groups):
        for model in group.models:
            other = find(first.setdefault(model, index))
            mine = find(index)
            leader[max(mine, other)] = min(mine, other)
    parts: dict[int, list[int]] = {}
    for index in range(len(groups)):
        parts.setdefault(find(index), []).append(index)
    return list(parts.values())
