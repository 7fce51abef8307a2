"""``Turns``: stages sought by what layers cost, and solved, until they stay. Needs numpy."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from blocks.pipeline.inter_op import DoesNotFit, InterOpPlan
from blocks.sharding import Cluster
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.search.assemble import assemble
from recipes.plan.search.no_plan import no_plan
from recipes.plan.search.partition import Partition, memory_bytes
from recipes.plan.search.solved_option import with_solved
from recipes.plan.search.stage_options import Note, OptionTables
from recipes.plan.search.stage_solution import StageSolution
from recipes.plan.search.stage_work import solve_stages
from recipes.plan.search.transfers import Transfer, has_skips, transfer_of

TURNS = 3
"""Times that stages are solved on the same terms, at most."""

LESS = 0.95
"""Share of the memory that stages are sought with, where those found needed more, once or again."""

HAIR = 1e-9
"""Sums of another order differ by less."""


@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """A plan and what it was chosen from, to be asked further questions.

    plan: the answer.
    chain: layers of the model, for the plan's rows of a microbatch.
    inter_op: stages as the tables had them.
    partition: what it was chosen by, with the stages' own costs in its tables.
    solutions: of the stages.
    sought: what the partition answers now under the same limits: what its answers under others are
        to be compared with.
    """

    plan: ParallelPlan
    chain: LayerChain
    inter_op: InterOpPlan
    partition: Partition
    solutions: tuple[StageSolution, ...]
    sought: InterOpPlan

    @property
    def tables(self) -> OptionTables:
        """Costs of layers."""
        return self.partition.tables


class Terms(NamedTuple):
    """What is taken to go between stages before they are known.

    skips, apart: see ``transfer_of``.
    whole: that nothing goes, for all devices are one stage.
    """

    skips: bool = False
    apart: bool = False
    whole: bool = False


LEAST = Terms()
"""No stages take less, however they come to lie."""

WHOLE = Terms(whole=True)


class Turns:
    """Stages sought and solved: what they cost as solved is a further way to run layers, and stages
    are sought again, until they stay as they are.

    tables: costs of layers, with those of all stages solved.
    terms: those under which stages are sought first: what skips layers goes through the stages
        between, if there is any.
    """

    def __init__(
        self,
        chains: Mapping[int, LayerChain],
        cluster: Cluster,
        config: PlanConfig,
        say: Note,
        tables: OptionTables,
    ) -> None:
        self.chains, self.cluster, self.config, self.say = chains, cluster, config, say
        self.tables = tables
        self.terms = Terms(skips=has_skips(next(iter(chains.values()))))
        self._caps = memory_bytes(cluster, config)
        self._known: dict[object, StageSolution] = {}
        self._transfers: dict[Terms, dict[int, Transfer]] = {}
        self._found: dict[tuple[Terms, float, bool], InterOpPlan] = {}
        self._best: tuple[Searched, Terms] | None = None

    @property
    def best(self) -> Searched:
        """With the shortest step of all turns."""
        assert self._best is not None, "it ran"
        return self._best[0]

    def run(self, terms: Terms) -> None:
        """Until stages stay, or for some turns. Stages that need more on their own than their
        layers did are sought again with less memory.

        Raises:
            ValueError: nothing fits; not where something did on other terms.
        """
        room, refused = 1.0, ValueError("no turns")
        try:
            found = self._sought(terms, every_cut=False)
        except DoesNotFit as error:
            if self._best is not None:
                return
            raise no_plan(error, self.cluster, self.config) from error
        for _ in range(TURNS):
            stages, parts = found.num_stages, found.num_microbatches
            counted = f"{stages} stage{'s' * (stages > 1)}, {parts} microbatch{'es' * (parts > 1)}"
            self.say(f"{counted}, {found.schedule}")
            try:
                self._solve(found, terms)
                again = self._sought(terms, room=room)
            except DoesNotFit:
                break
            except ValueError as error:
                refused = error
                again, room = self._smaller(found, terms, room)
            if again is None or decided(again, self.tables) == decided(found, self.tables):
                break
            found = again
        if self._best is None:
            raise refused

    def _smaller(
        self, found: InterOpPlan, terms: Terms, room: float
    ) -> tuple[InterOpPlan | None, float]:
        """Other stages than those that need more than their layers did, sought with less memory,
        and the share that was left; None where no others fit."""
        while True:
            room *= LESS
            self.say(f"stages need more than their layers did; again with {room:.0%} of memory")
            try:
                again = self._sought(terms, room=room)
            except DoesNotFit:
                return None, room
            if decided(again, self.tables) != decided(found, self.tables):
                return again, room

    def is_quicker(self, terms: Terms) -> bool:
        """Whether what is sought on these terms takes less than the best, as layers cost."""
        try:
            return self._sought(terms).makespan_s < self.best.plan.predicted.step_s
        except DoesNotFit:
            return False

    def bounded(self) -> InterOpPlan:
        """Stages sought as they take least, by all costs seen, and what no plan takes less than."""
        return self._sought(LEAST)

    def answer(self, last: InterOpPlan) -> Searched:
        """The best plan with the bound of ``last``, to be asked on the terms it was found on."""
        assert self._best is not None, "it ran"
        best, terms = self._best
        step_s, bound_s = best.plan.predicted.step_s, last.bound_s
        if bound_s * (1 - HAIR) <= step_s:  # the same additions in another order
            bound_s = min(bound_s, step_s)
        predicted = dataclasses.replace(best.plan.predicted, bound_s=bound_s)
        sought = self._sought(terms)
        same = decided(sought, self.tables) == decided(best.inter_op, self.tables)
        inter_op = sought if same else best.inter_op
        return dataclasses.replace(
            best,
            plan=dataclasses.replace(best.plan, predicted=predicted),
            inter_op=dataclasses.replace(inter_op, bound_s=bound_s, granularity=last.granularity),
            partition=self._partition(terms),
            sought=sought,
        )

    def _partition(self, terms: Terms) -> Partition:
        """By all costs seen so far."""
        if terms not in self._transfers:
            self._transfers[terms] = {
                count: transfer_of(self.cluster, chain, skips=terms.skips, apart=terms.apart)
                for count, chain in self.chains.items()
            }
        tables = self.tables.with_transfers(self._transfers[terms])
        limits = dataclasses.replace(self.config, max_stages=1) if terms.whole else self.config
        return Partition(tables, self.cluster, limits)

    def _sought(self, terms: Terms, *, room: float = 1.0, every_cut: bool = True) -> InterOpPlan:
        """
        Args:
            room: share of the memory that may be used.
        """
        key = terms, room, every_cut and terms == LEAST
        if key not in self._found:
            caps = {kind: room * size for kind, size in self._caps.items()}
            self._found[key] = self._partition(terms).best(caps, every_cut=key[-1])
        return self._found[key]

    def _solve(self, found: InterOpPlan, terms: Terms) -> None:
        """Solve stages, keep their plan if it is the best, and what they cost in any case."""
        chain, tables, config = self.chains[found.num_microbatches], self.tables, self.config
        solutions = solve_stages(found, chain, tables, self.cluster, config, self.say, self._known)
        plan = assemble(found, chain, self.cluster, config, solutions)
        if self._best is None or plan.predicted.step_s < self.best.plan.predicted.step_s:
            by = self._partition(terms)
            self._best = Searched(plan, chain, found, by, solutions, found), terms
        self.tables = with_solved(tables, found, chain, solutions)
        self._found.clear()


def decided(plan: InterOpPlan, tables: OptionTables) -> object:
    """What decides how stages are solved: layers, submeshes, meshes, recomputation, schedule."""
    stages = []
    for stage in plan.stages:
        option = tables.option(plan.num_microbatches, stage.shape, stage.option)
        mesh = option.candidate.mesh
        stages.append((stage.first, stage.stop, stage.shape, mesh.sizes, option.recompute))
    return stages, plan.schedule, plan.num_microbatches
