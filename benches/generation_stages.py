"""A model of 13 billion parameters on eight simulated devices of 24 GB with a slow link, placed
with one batch in flight over a group's stages and with a batch a stage.

    python -m benches.generation_stages

It does not fit one device: two share every layer, or each has half of them. The profile is a
roofline; its assumptions stand in its provenance and are printed.
"""

import numpy as np

from benches.no_options import no_options
from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.place_search import GenerationSimulator, PlacementPlan, place
from blocks.sched.profile import Configuration, Decoder, Device, roofline_profile
from blocks.sched.workload import Workload, gamma_workload

SIZE = Decoder(13.0e9, 40, 5120, 819200)
DEVICE = Device("24 GB, 25 GbE", 7e13, 4.8e11, 2.5e9, 5e-5, 2e-3)
CONFIGURATIONS = ((2, 1), (1, 2), (4, 1), (2, 2), (1, 4))
PROFILE = roofline_profile("13B", SIZE, DEVICE, CONFIGURATIONS)
NUM_DEVICES, MEMORY_BYTES = 8, 22 * 10**9
RATE, TTFT_S, TPOT_S = 12.0, 2.0, 0.1


def traffic(duration_s: float = 40.0, rate: float = RATE, seed: int = 0) -> Workload:
    """Gaps with a CV of 2, prompts of 340 and answers of 95 tokens on average, both log-normal."""
    rng = np.random.default_rng(seed)
    made = gamma_workload([rate], 2.0, duration_s, rng, ["13B"])
    prompts = np.minimum(rng.lognormal(5.5, 0.8, made.num_requests), 3000).astype(np.int32) + 1
    outputs = np.minimum(rng.lognormal(4.3, 0.7, made.num_requests), 500).astype(np.int32) + 1
    return made.with_lengths(prompts, outputs).with_slo(TTFT_S, TPOT_S)


def placed(
    num_lanes: int | None, workload: Workload, num_devices: int = NUM_DEVICES
) -> PlacementPlan:
    """The best placement found for groups whose stages are one engine's at a time.

    Args:
        num_lanes: batches in flight over stages; None: one a stage.
    """
    settings = EngineSettings(token_budget=512, max_num_seqs=64, num_lanes=num_lanes, overlap=False)
    profiles = {"13B": PROFILE}
    return place(
        workload,
        profiles,
        num_devices,
        MEMORY_BYTES,
        simulator=GenerationSimulator(profiles, workload, settings=settings),
        configurations=[Configuration(*one) for one in CONFIGURATIONS],
        kv_tokens={"13B": 4096},
        beam_simulations=0,
        local_simulations=5,
    )


def main() -> None:
    """Print the profile's assumptions and both placements."""
    print(PROFILE.provenance[0].text)
    for num_lanes in (1, None):
        plan = placed(num_lanes, traffic())
        print(f"in flight: {num_lanes or 'a batch a stage'}\n{plan.placement}", flush=True)
        print(f"attainment {plan.attainment:.1%}")


if __name__ == "__main__":
    no_options(__doc__)
    main()
