"""The way from what is there to what is wanted: laws, and cases by hand."""

from hypothesis import given

from blocks.sched.placement import Group, Placement
from recipes.place.fleet.action import Action, Load, Replace, Start, Stop, Unload
from recipes.place.fleet.observed import Observed
from recipes.place.fleet.reconcile import reconcile
from tests.place.fleet.clusters import (
    SHAPES,
    draw_observed,
    draw_placement,
    fits,
    group,
    rngs,
    seen,
)


class Cluster:
    """Carries actions out one after another, and asserts that each can be."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.groups = {g.devices: g.as_group() for g in observed.groups}
        self.unready = {
            (g.devices, r.model) for g in observed.groups for r in g.replicas if not r.ready
        }

    def do(self, action: Action) -> None:
        assert not self.observed.busy.intersection(action.devices), action
        if isinstance(action, Start):
            assert not self.observed.lost.intersection(action.devices)
            assert (action.devices, "") not in self.observed.waiting
            taken = {device for devices in self.groups for device in devices}
            assert not taken.intersection(action.devices), (action, self.groups)
            self.groups[action.devices] = Group(action.devices, action.configuration)
        elif isinstance(action, Load):
            assert (action.devices, action.model) not in self.observed.waiting
            here = self.groups[action.devices]
            rooms = here.kv_tokens or (0,) * len(here.models)
            here = here._replace(
                models=(*here.models, action.model), kv_tokens=(*rooms, action.kv_tokens)
            )
            assert fits(here), (action, here)
            self.groups[action.devices] = here
        elif isinstance(action, Unload):
            here = self.groups[action.devices]
            at = here.models.index(action.model)
            self.groups[action.devices] = here._replace(
                models=here.models[:at] + here.models[at + 1 :],
                kv_tokens=here.kv_tokens[:at] + here.kv_tokens[at + 1 :],
            )
            self.unready.discard((action.devices, action.model))
        elif isinstance(action, Stop):
            del self.groups[action.devices]

    def replicas(self, model: str) -> int:
        """That answer requests."""
        return sum(
            model in here.models and (devices, model) not in self.unready
            for devices, here in self.groups.items()
        )

    def seen(self) -> Observed:
        made = tuple(self.groups.values())
        return self.observed._replace(groups=seen(*made))


def shape_of(groups) -> dict:
    return {g.devices: (g.configuration, frozenset(g.models)) for g in groups}


@given(rngs)
def test_every_step_can_be_done_after_those_before_it(rng):
    desired, observed = draw_placement(rng), draw_observed(rng)
    cluster = Cluster(observed)
    for action in reconcile(desired, observed, fits):
        if not isinstance(action, Replace):
            cluster.do(action)


@given(rngs)
def test_the_way_leads_there_and_ends_there(rng):
    desired, observed = draw_placement(rng), draw_observed(rng, calm=True)
    cluster = Cluster(observed)
    for action in reconcile(desired, observed, fits):
        cluster.do(action)
    assert shape_of(cluster.groups.values()) == shape_of(desired.groups)
    assert reconcile(desired, cluster.seen(), fits) == ()


@given(rngs)
def test_after_failures_have_waited_the_way_goes_on_to_the_end(rng):
    desired, observed = draw_placement(rng), draw_observed(rng)
    cluster = Cluster(observed)
    for action in reconcile(desired, observed, fits):
        if not isinstance(action, Replace):
            cluster.do(action)
    cluster.observed = Observed(lost=observed.lost)
    for action in reconcile(desired, cluster.seen(), fits):
        if not isinstance(action, Replace):
            cluster.do(action)
    left = [g for g in desired.groups if not observed.lost.intersection(g.devices)]
    assert shape_of(cluster.groups.values()) == shape_of(left)


@given(rngs)
def test_with_memory_to_spare_and_equal_groups_no_wanted_model_is_ever_away(rng):
    """Groups stay as they are and everything fits: then new replicas can always come first."""
    observed = draw_observed(rng, calm=True)
    drawn = [rng.sample("abcd", rng.randrange(5)) for _ in observed.groups]
    desired = Placement(
        tuple(
            group(g.devices, *models, shape=g.configuration)
            for g, models in zip(observed.groups, drawn, strict=True)
        )
    )
    cluster = Cluster(observed)
    there = {m for m in observed.wanted if cluster.replicas(m) and m in desired.models}
    for action in reconcile(desired, observed, lambda made: True):
        cluster.do(action) if not isinstance(action, Load) else _load(cluster, action)
        assert all(cluster.replicas(model) for model in there), action


def _load(cluster: Cluster, load: Load) -> None:
    here = cluster.groups[load.devices]
    rooms = here.kv_tokens or (0,) * len(here.models)
    cluster.groups[load.devices] = here._replace(
        models=(*here.models, load.model), kv_tokens=(*rooms, load.kv_tokens)
    )


def test_models_change_places_through_a_third():
    """Neither of two full groups has room for the other's model: one of them must go first."""
    old, new = [group([0], "a"), group([1], "b")], [group([0], "b"), group([1], "a")]
    observed = Observed(seen(*old), wanted=frozenset("ab"))
    steps = reconcile(Placement(tuple(new)), observed, fits)
    assert len(steps) == 4
    first, second, third, fourth = steps
    assert isinstance(first, Unload)
    assert isinstance(second, Load)
    assert (isinstance(third, Unload), isinstance(fourth, Load)) == (True, True)
    idle = reconcile(Placement(tuple(new)), observed._replace(wanted=frozenset("b")), fits)
    assert idle[0] == Unload((0,), "a")  # b answers on until its new replica does
    assert idle[1] == Load((0,), "b", 50)


def test_a_new_replica_comes_before_the_old_one_goes_even_between_shapes():
    observed = Observed(seen(group([0, 1], "c")), wanted=frozenset("c"))
    desired = Placement((group([2], "c"), group([0]), group([1], "d")))
    steps = reconcile(desired, observed, fits)
    assert steps.index(Load((2,), "c", 50)) < steps.index(Stop((0, 1)))
    assert steps.index(Stop((0, 1))) < steps.index(Start((1,), SHAPES[0]))


def test_an_old_replica_stays_while_the_new_one_waits_after_a_failure():
    observed = Observed(
        seen(group([0], "c"), group([1])),
        wanted=frozenset("c"),
        waiting=frozenset({((1,), "c")}),
    )
    desired = Placement((group([0]), group([1], "c")))
    assert reconcile(desired, observed, fits) == ()
    assert reconcile(desired, observed._replace(wanted=frozenset()), fits) == (Unload((0,), "c"),)


def test_rooms_shrink_only_where_something_else_must_fit():
    roomy = Group((0,), SHAPES[0], ("c",), (300,))
    observed = Observed(seen(roomy))
    assert reconcile(Placement((group([0], "c"),)), observed, fits) == ()
    assert reconcile(Placement((group([0], "c", "d"),)), observed, fits) == (
        Unload((0,), "c"),
        Load((0,), "c", 50),
        Load((0,), "d", 50),
    )


def test_lost_devices_are_named_and_the_rest_is_done():
    desired = Placement((group([0], "a"), group([1, 2], "b")))
    observed = Observed(lost=frozenset({2, 3}))
    assert reconcile(desired, observed, fits) == (
        Replace((2,)),
        Start((0,), SHAPES[0]),
        Load((0,), "a", 50),
    )


def test_replicas_that_are_not_ready_do_not_count():
    observed = Observed(seen(group([0], "c"), ready=False), wanted=frozenset("c"))
    observed = observed._replace(
        groups=(observed.groups[0], *seen(group([1], "c"))), busy=frozenset({0})
    )
    desired = Placement((group([0], "c"), group([1])))
    assert reconcile(desired, observed, fits) == ()
    ready = observed._replace(groups=seen(group([0], "c"), group([1], "c")))
    assert reconcile(desired, ready, fits) == (Unload((1,), "c"),)
