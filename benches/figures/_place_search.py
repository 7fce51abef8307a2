"""Figures of the placement search: optimality, promises, time, published suites."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from benches.figures.row import Measured, Row
from benches.place_suites import (
    MEMORY_BYTES,
    SWEEPS,
    Point,
    curve,
    furthest,
    ours,
    replicated,
)
from blocks.sched.place_search import place, replan_over_time
from blocks.sched.profile import Profile, bundled_profile
from blocks.sched.workload import Workload, gamma_workload, power_law_rates
from tests.sched.place_search import test_published_cases as published
from tests.sched.place_search.volume import (
    Compared,
    against_all_placements,
    against_replication,
    against_swapping,
)

COMMAND = "python -m benches.figures --area place"
NIGHTLY = COMMAND + " --nightly"
KINDS = {  # AlpaServe's mixed set: latency and weights, times those of BERT-1.3B
    "bert-6.7b": (395 / 151, 13.4 / 2.4),
    "moe-5.3b": (2.9, 10.6 / 2.4),
    "bert-2.6b": (238 / 151, 5.4 / 2.4),
    "moe-2.4b": (1.9, 4.8 / 2.4),
    "bert-1.3b": (1.0, 1.0),
    "moe-1.3b": (204 / 151, 2.6 / 2.4),
}


def rows() -> Iterator[Row]:
    yield Row(
        "AlpaServe's three placement cases: two replicas each; pairs that host all four; one "
        "pipeline of four",
        "exactly",
        COMMAND,
        _published_cases,
    )
    for seeds, most, nightly in (
        (range(100, 125), 5_000, False),
        (range(2000, 2120), 50_000, True),
    ):
        yield Row(
            f"placement search against every placement, {len(seeds)} random cases up to 6 models x "
            f"8 devices, up to {most:,} placements each",
            "all within 1 %",
            NIGHTLY if nightly else COMMAND,
            lambda seeds=seeds, most=most: _promised(against_all_placements(seeds, 6, 8, most)),
            nightly=nightly,
        )
    yield Row(
        "placement search against selective replication, 60 random cases up to 12 models x 16 "
        "devices",
        "never below",
        COMMAND,
        lambda: _promised(against_replication(range(60), 12, 16), exact="proven best"),
    )
    for bytes_per_s, name in ((12e9, "12 GB/s a device"), (float("inf"), "no cost")):
        yield Row(
            f"re-planning against swapping every window, same foresight, switches at {name}, 12 "
            "random drifts",
            "never below",
            COMMAND,
            lambda bytes_per_s=bytes_per_s: _promised(
                against_swapping(range(12), bytes_per_s), exact="by its own path"
            ),
        )
    yield Row(
        "rates that wander over 16 models on 4 devices with room for 8, switches at 12 GB/s: "
        "attainment of one placement, of swapping, of re-planning (simulated)",
        "",
        COMMAND,
        _drift,
    )
    for rate in (60.0, 150.0):
        yield Row(
            f"72 models of six kinds on 64 devices placed, {rate:g} requests/s, CV 4: CPU time",
            "<= 300 s",
            COMMAND,
            lambda rate=rate: _large(rate),
        )
    for axis in SWEEPS:
        yield Row(
            f"48 x BERT-1.3B, Gamma traffic, attainment over {axis} (simulated): replication <= "
            "swapping free of cost with foresight <= placement search",
            "at every point",
            COMMAND,
            lambda axis=axis: _order(axis),
        )
    yield from _headlines()


def _headlines() -> Iterator[Row]:
    """How far 99 % reaches, on 16 devices: AlpaServe's headline ratios."""
    base = "48 x BERT-1.3B, 99 % attainment (simulated), search against selective replication: "
    rates = (0.5, 1, 2, 5, 10, 20, 30, 40, 50)
    cvs = (0.25, 0.5, 1, 1.5, 2, 2.25, 2.5, 2.75, 3, 4, 5, 6, 6.5, 7)
    slos = (20, 17, 14, 12, 10, 8, 6, 5, 4, 3, 2.5, 2.25, 2)
    counts = (48, 44, 40, 36, 32, 28, 24, 20, 16, 14, 12)
    for claim, axis, values, point, target in (
        ("largest rate at CV 4, limit 5 latencies, 16 devices", "rate", rates, Point(), 10),
        ("largest CV at 20/s, limit 1.5 latencies, 16 devices", "cv", cvs, Point(slo=1.5), 6),
        ("largest CV at 20/s, limit 5 latencies, 16 devices", "cv", cvs, Point(), None),
        ("tightest limit at 20/s, CV 4, 16 devices", "slo", slos, Point(), 2.5),
        ("fewest devices at 20/s, CV 4, limit 5 latencies", "num_devices", counts, Point(), 2.3),
    ):
        yield Row(
            base + claim,
            "" if target is None else f">= {target:g}x",
            COMMAND,
            lambda axis=axis, values=values, point=point, target=target: _reach(
                axis, values, point, target
            ),
        )


def _published_cases() -> Measured:
    cases = (
        published.test_each_of_four_models_has_two_replicas_where_two_fit_on_a_device,
        published.test_two_groups_of_two_host_all_four,
        published.test_a_burst_wants_one_pipeline_of_all_devices,
    )
    exact = 0
    for case in cases:
        try:
            for seed in range(3):
                case(seed)
            exact += 1
        except AssertionError:
            continue
    return Measured(f"{exact} of {len(cases)}, on 3 draws of traffic each", exact == len(cases))


def _promised(found: Compared, exact: str = "best there is") -> Measured:
    text = f"{found.kept} of {found.cases}, {found.exact} {exact}"
    if found.placements:
        text += f", worst {found.worst:.2%} short, {found.placements:,} placements"
    return Measured(text, found.kept == found.cases)


def _drift() -> Measured:
    workload, profiles, num_devices, memory_bytes, every_s = wandering()
    plan = replan_over_time(
        workload, profiles, num_devices, memory_bytes, every_s=every_s, local_simulations=20
    )
    text = f"{plan.static:.1%}, {plan.swapped:.1%}, {plan.attainment:.1%}"
    text += f" ({plan.timeline.num_loads} replicas loaded, {plan.timeline.bytes / 1e9:.0f} GB)"
    return Measured(text, None)


def wandering() -> tuple[Workload, dict[str, Profile], int, int, float]:
    """Rates of a power law that move on by two models every minute."""
    known = bundled_profile("bert-1.3b")
    profiles = {f"bert-{index}": known.renamed(f"bert-{index}") for index in range(16)}
    rng, whole = np.random.default_rng(0), None
    for index in range(5):
        rates = np.roll(power_law_rates(16, 14.0, 1.5), 2 * index)
        part = gamma_workload(rates, 3.0, 60.0, rng, list(profiles), 5 * known.latency_s())
        whole = part if whole is None else whole.follow(part)
    assert whole is not None
    return whole, profiles, 4, 2 * known.timing((1, 1)).device_bytes(), 60.0


def _large(rate: float) -> Measured:
    known = bundled_profile("bert-1.3b")
    profiles = {}
    for kind, (longer, heavier) in KINDS.items():
        for index in range(12):
            name = f"{kind} {index}"
            profiles[name] = known.scaled(name, time=longer, weight=heavier, why=kind)
    rng = np.random.default_rng(0)
    rates = rng.permutation(power_law_rates(len(profiles), rate))
    limits = {name: 5 * profile.latency_s() for name, profile in profiles.items()}
    workload = gamma_workload(rates, 4.0, 20_000 / rate, rng, list(profiles)).with_slo(limits)
    start = time.process_time()
    plan = place(workload, profiles, 64, MEMORY_BYTES)
    seconds = time.process_time() - start
    shares = f"{plan.attained['selective replication']:.1%} -> {plan.attainment:.1%}"
    text = f"{seconds:.0f} s, {plan.evaluated:,} placements of {workload.num_requests:,} requests"
    return Measured(f"{text}; {shares} (bound {plan.bound:.1%})", seconds <= 300)


def _order(axis: str) -> Measured:
    points = curve(axis)
    shown = [
        f"{getattr(one.point, axis):g}: "
        + "/".join(f"{100 * share:.1f}" for share in (one.replication, one.swapping, one.ours))
        for one in points
    ]
    return Measured(" · ".join(shown) + " %", all(one.in_order for one in points))


def _reach(axis: str, values: Sequence[float], point: Point, target: float | None) -> Measured:
    """The ratio of what both reach; where replication reaches nothing, of ours to its first try."""
    far = furthest(axis, values, point, replicated)
    mine = furthest(axis, values, point, ours)
    if mine is None:
        return Measured("99 % is not reached", False)
    other = values[0] if far is None else far
    ratio = max(mine / other, other / mine)
    beyond = " (not at all)" if far is None else ""
    text = f"{mine:g} against {other:g}{beyond}, {'>' if far is None else ''}{ratio:.1f}x"
    return Measured(text, None if target is None else ratio >= target)
