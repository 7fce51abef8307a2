"""Real groups of tiny models on this machine against the same clusters simulated.

    python -m benches.place_real                # every setting, 11 minutes, on a quiet machine
    python -m benches.place_real --clock        # engines compute, on a clock of processor time
    python -m benches.place_real --only pair    # placements whose name holds the text
    python -m benches.place_real --direction    # one model a group against all models on each

Each placement's processes are started once. Right before its settings, on the same cores: the
profile of its models is timed, then what a request costs beside steps, then how much slower a core
is while the others work. A few steps are timed again before and after every setting, as processors
drift: the front door's profile goes by those before. Rates and limits are multiples of the times
measured; nothing is fitted to what is compared. The same arrivals, prompts and lengths go to the
groups and to the simulation.

Every setting is simulated twice: with the pace of the machine meanwhile, which the groups' own
steps tell (``StepPace``: seconds of steps over the profile's for the same loads, in windows), and
by the profile alone. A setting that others on the machine disturbed is played again.

Groups with stages have one batch in flight here (``pp_batches=1``): neither shared cores nor a pace
can be simulated with several. ``benches.place_stages`` holds those against the simulation.
"""

import argparse
import time
from collections.abc import Sequence

import torch

from benches.place_real_clock import play_clocked
from benches.place_real_groups import Spare, on_exact_timers, play
from benches.place_real_settings import (
    APART,
    BURSTY,
    PLACES,
    SECONDS,
    TOGETHER,
    Place,
    saved_models,
)
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.measure import Compared, Gap
from recipes.place.measure.compared import HEAD

REPEAT_S = 85.0
"""How long all that is played again may take, so that a run has an end."""


def run(
    only: str = "",
    clock: bool = False,
    seconds: float = SECONDS,
    repeat_s: float = REPEAT_S,
) -> list[Compared]:
    """Play the placements whose names hold ``only``."""
    torch.set_num_threads(1)
    found: list[Compared] = []
    known: dict[str, Profile] = {}
    begun_s, spare = time.monotonic(), Spare(repeat_s)
    print(HEAD, flush=True)
    with saved_models() as folders:
        for place in PLACES:
            if only not in place.name:
                continue
            if clock:
                if place.op * place.pp == 1:
                    found += play_clocked(place, folders, seconds, known=known)
            else:
                found += on_exact_timers(play(place, folders, seconds, (), spare))
            print(f"  {time.monotonic() - begun_s:.0f} s so far", flush=True)
    return found


def direction(
    clock: bool = False, seconds: float = SECONDS
) -> tuple[list[Compared], list[Compared]]:
    """One bursty mixed workload after another, on two devices: one model a group, and both on
    every group."""
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    with saved_models() as folders:

        def played(place: Place, given: Sequence[Workload] = ()) -> list[Compared]:
            if clock:
                return play_clocked(place, folders, seconds, given)
            return on_exact_timers(play(place, folders, seconds, given))

        apart = played(APART)
        return apart, played(TOGETHER, [one.real.workload for one in apart])


def direction_summary(apart: Sequence[Compared], together: Sequence[Compared]) -> str:
    """Attainments of both, really and simulated, by load."""
    told = []
    for traffic, one, other in zip(BURSTY, apart, together, strict=True):
        told.append(
            f"load {traffic.load:g}: {other.real.attainment:.1%} against "
            f"{one.real.attainment:.1%} (simulated {other.simulated.attainment:.1%} against "
            f"{one.simulated.attainment:.1%})"
        )
    return "; ".join(told)


def counted(found: Sequence[Compared]) -> list[Compared]:
    """Those that others did not disturb."""
    return [one for one in found if one.is_undisturbed]


def summary(found: Sequence[Compared], by_profile: bool = False) -> str:
    """How far simulated attainments are from real ones, over what others did not disturb.

    Args:
        by_profile: simulated by the profile alone, instead of with the groups' own pace.
    """
    kept = counted(found)
    undisturbed = f"{len(kept)} of {len(found)} settings undisturbed"
    if not kept:
        return undisturbed
    gap = Gap.between([one.profile_points if by_profile else one.points for one in kept])
    spread = sorted(one.real.attainment for one in kept)
    text = (
        f"{undisturbed}, attainment {spread[0]:.0%} to {spread[-1]:.0%}: simulated "
        f"{gap.mean:.1f} points off on average, {gap.worst:.1f} at worst, bias {gap.bias:+.1f}"
    )
    taken = [one.contention.others for one in kept if one.contention is not None]
    if taken:
        text += f"; others had at most {max(taken):.1%} of the cores"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--clock", action="store_true")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of traffic, a setting")
    parser.add_argument(
        "--repeat-s",
        type=float,
        default=REPEAT_S,
        help="how long all that is played again, for others disturbed it, may take",
    )
    parser.add_argument("--direction", action="store_true", help="groups apart against shared")
    asked = parser.parse_args()
    if asked.direction:
        print(direction_summary(*direction(asked.clock, asked.seconds)), flush=True)
    else:
        found = run(asked.only, asked.clock, asked.seconds, asked.repeat_s)
        print(f"with the pace of the machine meanwhile: {summary(found)}", flush=True)
        print(f"by the profile alone: {summary(found, by_profile=True)}", flush=True)


if __name__ == "__main__":
    main()
