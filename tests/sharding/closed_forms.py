"""Alpa's closed forms, as its tests have them, beside what is found here; in exact fractions.

Reference: Zheng et al., "Alpa", 2022, section 4, and the tests of its code, whose shapes and meshes
these are.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from blocks.sharding import (
    AlphaBeta,
    Mesh,
    OpGraph,
    OpNode,
    Placement,
    Replicate,
    Shard,
    Strategy,
)
from blocks.sharding.cost import ALPA_TIES
from blocks.sharding.intra_op import IntraOpPlan, solve
from blocks.sharding.rules import einsum_rule, permute_rule, view_rule
from blocks.sharding.strategy import REPLICATE
from tests.sharding.training_steps import (
    Step,
    attention_forward,
    conv_step,
    embedding_step,
    experts_step,
    mlp_step,
)

S0, S1, R = Shard(0), Shard(1), Replicate()

Allowed = Callable[[OpNode, Strategy], bool]
Counts = dict[tuple[str, str], int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A graph on a mesh, and what Alpa says it costs.

    sizes, beta: of the mesh axes ``a`` and ``b``; their latency is 1.
    form: Alpa's closed form.
    counts: how many collectives it has, by kind and axis.
    pins, allowed: under which the form comes out; both None where it is the optimum.
    memory_cap: bytes of a rank.
    always: pins of the optimum too.
    """

    name: str
    graph: OpGraph
    sizes: tuple[int, ...]
    beta: tuple[Fraction, ...]
    form: Fraction
    counts: Counts
    pins: Mapping[str, tuple[Placement, ...]] | None = None
    allowed: Allowed | None = None
    always: Mapping[str, tuple[Placement, ...]] | None = None
    memory_cap: int | None = None

    @property
    def mesh(self) -> Mesh:
        return Mesh(("a", "b")[: len(self.sizes)], self.sizes)

    def solved(self, *, as_alpa: bool) -> IntraOpPlan:
        """The optimum, or that of what Alpa's form is of."""
        mesh = self.mesh
        cost = AlphaBeta(mesh, (1,) * len(self.sizes), self.beta, ALPA_TIES)
        computed_once, more = once(mesh), self.allowed if as_alpa else None

        def allowed(node: OpNode, strategy: Strategy) -> bool:
            return computed_once(node, strategy) and (more is None or more(node, strategy))

        pins = {**(self.always or {}), **((self.pins or {}) if as_alpa else {})}
        return solve(self.graph, mesh, cost, allowed=allowed, pins=pins, memory_cap=self.memory_cap)

    def value(self, plan: IntraOpPlan) -> Fraction:
        """What a plan costs, exactly: its collectives and the bytes they send are whole numbers.

        Bytes of an all-to-all count for half as many as there are ranks, as Alpa has it.
        """
        betas = dict(zip(self.mesh.axes, self.beta, strict=True))
        total = Fraction(0)
        for use in plan.price.collectives:
            exchange = use.collective == "all_to_all"
            times = Fraction(self.mesh.size(use.axis), 2) if exchange else 1
            total += use.count * (1 + ALPA_TIES[use.collective])
            total += betas[use.axis] * use.sent_bytes * times
        return total


def counts_of(plan: IntraOpPlan) -> Counts:
    """Collectives of a plan by kind and axis."""
    found: Counts = {}
    for use in plan.price.collectives:
        key = (use.collective, use.axis)
        found[key] = found.get(key, 0) + use.count
    return found


def once(mesh: Mesh) -> Allowed:
    """Every product is computed once: no rank does what another does too."""

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        cuts = zip(strategy.choices, mesh.sizes, strict=True)
        return not node.rule.flops_per_point or all(c >= 0 for c, size in cuts if size > 1)

    return allowed


def all_reduce(num_bytes: int, num_ranks: int, beta: Fraction = Fraction(1)) -> Fraction:
    """Latency 1, ``2 (n - 1) / n`` of the bytes, Alpa's tie breaker."""
    part = -(-num_bytes // 4 // num_ranks) * 4  # of elements of 4 bytes, the longest part
    return 1 + beta * 2 * (num_ranks - 1) * part + ALPA_TIES["all_reduce"]


ONE, HUNDREDTH = Fraction(1), Fraction(1, 100)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _mlps()
    yield from _mlps_on_two_axes()
    yield from _forced()
    yield from _attention()
    yield from _products()
    yield from _zero()
    yield from _others()


def _mlps() -> Iterator[Case]:
    for num_layers in (2, 12):
        for sizes in ((4, 1), (1, 4)):
            axis = "ab"[sizes.index(4)]
            yield Case(
                f"{num_layers}-layer MLP, data parallel, on {sizes[0]}x{sizes[1]}",
                *(mlp_step(num_layers, 1024, 128), sizes, (ONE, ONE)),
                num_layers * all_reduce(128 * 128 * 4, 4),
                {("all_reduce", axis): num_layers},
            )
            yield Case(
                f"{num_layers}-layer MLP, model parallel, on {sizes[0]}x{sizes[1]}",
                *(mlp_step(num_layers, 128, 1024), sizes, (ONE, ONE)),
                (num_layers - 1) * all_reduce(128 * 1024 * 4, 4),
                {("all_reduce", axis): num_layers - 1},
            )


def _mlps_on_two_axes() -> Iterator[Case]:
    """Batch along the slow axis, weights along the fast one, by columns and by rows in turn."""

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        if not node.rule.flops_per_point:
            return True
        row = node.rule.index("row")
        return strategy.choices[0] == row and strategy.choices[1] != row

    for num_layers in (2, 12):
        for slow, fast in ((4, 8), (8, 4), (3, 4)):
            rows = -(-1024 // slow)
            form = num_layers * all_reduce(128 * 128 * 4 // fast, slow)
            form += (num_layers - 1) * all_reduce(rows * 128 * 4, fast, HUNDREDTH)
            yield Case(
                f"{num_layers}-layer MLP on {slow}x{fast}",
                *(mlp_step(num_layers, 1024, 128), (slow, fast), (ONE, HUNDREDTH), form),
                {("all_reduce", "a"): num_layers, ("all_reduce", "b"): num_layers - 1},
                pins={f"w{at}": (R, (S0, S1)[at % 2]) for at in range(num_layers)},
                allowed=allowed,
            )


def _forced() -> Iterator[Case]:
    """Products cut along the batch on the first axis alone."""

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        forced = not node.rule.flops_per_point
        return forced or strategy.choices[0] == node.rule.index("row")

    for slow, fast in ((4, 8), (8, 4)):
        form = 2 * all_reduce(1024 * 1024 * 4 // fast, slow)
        form += all_reduce(128 * 1024 * 4 // slow, fast, HUNDREDTH)
        yield Case(
            f"2-layer MLP, batch forced, on {slow}x{fast}",
            *(mlp_step(2, 128, 1024), (slow, fast), (ONE, HUNDREDTH), form),
            {("all_reduce", "a"): 2, ("all_reduce", "b"): 1},
            allowed=allowed,
        )


def _attention() -> Iterator[Case]:
    """Heads stay where their projections are: one all-reduce, of the output."""
    for hidden, sizes in ((512, (4, 1)), (512, (1, 4)), (2048, (4, 4))):
        graph = attention_forward(batch=4, length=128, hidden=hidden, heads=16)
        axis = 0 if sizes == (4, 1) else 1
        other = (R if 1 in sizes else S0,)
        along = lambda cut, axis=axis, o=other: (cut, *o) if axis == 0 else (*o, cut)  # noqa: E731
        whole = lambda cut, axis=axis: (cut, R) if axis == 0 else (R, cut)  # noqa: E731
        weights = {name: whole(S0) for name in ("wq", "wk", "wv")} | {"wo": whole(S1)}
        share = 4 * 128 * hidden * 4 // (1 if 1 in sizes else 4)
        yield Case(
            f"attention of {hidden} channels on {sizes[0]}x{sizes[1]}",
            *(graph, sizes, (ONE, ONE), all_reduce(share, 4)),
            {("all_reduce", "ab"[axis]): 1},
            pins=weights | {"x": along(R)},
            always={graph.nodes[-1].name: along(R)},
        )


def _products() -> Iterator[Case]:
    """One product along its long inner dim, however its operands are turned or seen before."""
    short, long = 128, 2048

    def whole_addends(node: OpNode, strategy: Strategy) -> bool:
        return node.op != "add" or strategy.choices[0] == REPLICATE

    def case(
        name: str,
        step: Step,
        x: int,
        y: int,
        cuts: tuple[Placement, Placement],
        times: int = 1,
    ) -> Case:
        rule = einsum_rule("ik,kj->ij", [(short, long), (long, short)])
        total = -1
        for _ in range(times):
            made = step.add("einsum", rule, (x, y), (short, short))
            total = made if total < 0 else step.map("add", total, made, linear=True)
        step.output(step.map("exp", total))
        graph = step.graph()
        return Case(
            *(name, graph, (4,), (ONE,), times * all_reduce(short * short * 4, 4)),
            {("all_reduce", "a"): times},
            pins={"x": cuts[:1], "y": cuts[1:]},  # as memory for a part of each would have it
            allowed=whole_addends,
            always={graph.nodes[-1].name: (R,)},
        )

    for turns in (1, 3):
        step = Step()
        x, y = step.input("x", long, short), step.input("y", short, long)
        for _ in range(turns):
            a, b = step.shape(x), step.shape(y)
            x = step.add("permute", permute_rule(a, (1, 0)), (x,), a[::-1])
            y = step.add("permute", permute_rule(b, (1, 0)), (y,), b[::-1])
        yield case(f"product after {turns} transposes of each operand", step, x, y, (S0, S1))
    for views in (1, 3):
        step = Step()
        x, y = step.input("x", short, long // 2, 2), step.input("y", long // 2, 2, short)
        apart = [((short, long), (long, short)), ((short // 4, 4, long), (long // 4, 4, short))]
        for number in range(views):
            for_x, for_y = apart[number % 2]
            x = step.add("view", view_rule(step.shape(x), for_x), (x,), for_x)
            y = step.add("view", view_rule(step.shape(y), for_y), (y,), for_y)
        yield case(f"product after {views} views of each operand", step, x, y, (S1, S0))
    for times in (2, 3):
        step = Step()
        x, y = step.input("x", short, long), step.input("y", long, short)
        yield case(f"sum of {times} products", step, x, y, (S1, S0), times)


def _zero() -> Iterator[Case]:
    """Memory for the weight but not for its whole gradient and state; for neither."""
    graph = mlp_step(1, batch=1024, hidden=128, input_gradient=True)
    weight = 128 * 128 * 4
    acts = 3 * 1024 * 128 * 4 // 4
    part = Fraction(3, 4) * weight
    scatter = 1 + part + ALPA_TIES["reduce_scatter"]
    gather = 1 + part + ALPA_TIES["all_gather"]
    yield Case(
        *("ZeRO-2", graph, (4,), (ONE,), scatter + gather),
        {("reduce_scatter", "a"): 1, ("all_gather", "a"): 1},
        memory_cap=acts + weight * 7 // 4,
    )
    yield Case(
        *("ZeRO-3", graph, (4,), (ONE,), scatter + 2 * gather),
        {("reduce_scatter", "a"): 1, ("all_gather", "a"): 2},
        memory_cap=acts + weight,
    )


def _others() -> Iterator[Case]:
    """Convolutions, a table, experts."""
    kernel = 8 * 8 * 3 * 3 * 4
    yield Case(
        "3 convolutions, data parallel",
        *(conv_step(64, 8, 32), (4,), (ONE,), 3 * all_reduce(kernel, 4)),
        {("all_reduce", "a"): 3},
    )
    tokens, vocab, hidden = 64, 4096, 64
    yield Case(
        "lookup in a table cut along the vocabulary",
        *(embedding_step(tokens, vocab, hidden, tied=False), (4,), (ONE,)),
        all_reduce(tokens * hidden * 4, 4),
        {("all_reduce", "a"): 1},
        pins={"table": (S0,)},
    )

    def apart(node: OpNode, strategy: Strategy) -> bool:
        names = {factor.name for factor in node.rule.factors}
        wanted = "e" if "h" in names else "g"
        return node.op != "einsum" or strategy.choices == (node.rule.index(wanted),)

    groups, experts, slots, channels = 4, 8, 16, 64
    moved = Fraction(3, 16) * groups * experts * slots * channels * 4
    yield Case(
        "experts on ranks of their own, groups on the same",
        experts_step(groups, 64, experts, slots, channels),
        *((4,), (ONE,), 4 * (1 + 2 * moved + ALPA_TIES["all_to_all"])),
        {("all_to_all", "a"): 4},
        allowed=apart,
    )


def results() -> list[dict[str, str | bool]]:
    """Of every case whether Alpa's form comes out, and how the optimum compares."""
    found: list[dict[str, str | bool]] = []
    for case in cases():
        alpa, free = case.solved(as_alpa=True), case.solved(as_alpa=False)
        value, least = case.value(alpa), case.value(free)
        told = abs(free.objective_s - float(least)) <= 1e-12 * float(case.form)
        found.append(
            {
                "name": case.name,
                "exact": value == case.form,
                "same_counts": counts_of(alpa) == case.counts,
                "proved": told and alpa.gap < 1e-12 and free.gap < 1e-12,
                "free": "worse" if least > value else "better" if least < value else "equal",
            }
        )
    return found
