"""Counts that are none are refused by name, by every constructor."""

import pytest

from tests.counts import check_refused, told

SETUP = """
import numpy as np
from blocks.sched import *
from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.place_search import *
from blocks.sched.profile import *
from blocks.sched.reference import ReferenceAllocator
from blocks.sched.simulate import Options
from blocks.sched.workload import *

known = bundled_profile("bert-1.3b")
profiles = {name: known.renamed(name) for name in "ab"}
asked = gamma_workload([2.0] * 2, 4.0, 5.0, np.random.default_rng(0), list(profiles), 0.5)
one = Configuration(1, 1)
device = Device("d", 1e12, 1e11, 1e9, 1e-6, 1e-3)
allocator = ReferenceAllocator(8, 4)

def request(**changed):
    return Request(**{"request_id": "a", "prompt_tokens": [1], "max_tokens": 4, **changed})
"""
GOOD = {
    "request": (
        "Request(request_id='a', prompt_tokens=[1], max_tokens=4, num_samples=1, min_tokens=0)"
    ),
    "scheduler": (
        "Scheduler(allocator, token_budget=8, max_num_seqs=4, max_model_len=16, max_waiting=4, "
        "max_waiting_tokens=99, max_failures=2, max_in_flight=1)"
    ),
    "reference": "ReferenceAllocator(num_blocks=8, block_size=4)",
    "options": (
        "Options(seed=0, num_blocks=20, block_size=4, max_num_seqs=4, token_budget=16, "
        "max_model_len=32, policy='fcfs', aging_s=1.0, watermark=0.01, max_waiting=4, "
        "arrival_rate=0.5)"
    ),
    "settings": (
        "EngineSettings(token_budget=512, max_num_seqs=64, max_model_len=81, block_size=16, "
        "num_lanes=1)"
    ),
    "simulator": "ClusterSim(profiles, asked, cache_bytes=1)",
    "memory": "Memory(profiles, memory_bytes=9)",
    "rooms": "Memory(profiles, 9, dict(kv_tokens=5))",
    "place": (
        "place(asked, profiles, num_devices=1, memory_bytes=10000000000, beam=1, "
        "beam_simulations=1, local_simulations=1, max_splits=1, max_shapes=1)"
    ),
    "replication": (
        "selective_replication(asked, profiles, num_devices=1, memory_bytes=10000000000)"
    ),
    "dealt": (
        "round_robin(asked, profiles, num_devices=1, memory_bytes=10000000000, configuration=one)"
    ),
    "bound": "attainment_bound(asked, profiles, num_devices=1, memory_bytes=9, configurations=[])",
    "timing": (
        "Timing(one, (5,), activation_bytes=1, kv_bytes_per_token=1, "
        "prefill=(PrefillTime(num_tokens=1, stage_s=(.1,)),), "
        "decode=(DecodeTime(batch_size=1, context_len=1, stage_s=(.1,)),))"
    ),
    "weights": "Timing(one, weight_bytes=(5,), batches=(BatchTime(batch_size=1, stage_s=(.1,)),))",
    "single": "single_pass('m', 'd', {(1, 1): [.1]}, weight_bytes=5)",
    "roofline": (
        "roofline_profile('m', Decoder(1e9, num_layers=4, hidden_size=64, kv_bytes_per_token=9), "
        "device, [(1, 1)])"
    ),
    "workload": "Workload.of(['m'], [0.0], prompt_len=4, output_len=4)",
    "lengths": "asked.with_lengths(prompt_len=4, output_len=4)",
}
COUNTS = {
    "request": ["max_tokens", "num_samples", "min_tokens"],
    "scheduler": [
        "token_budget", "max_num_seqs", "max_model_len", "max_waiting?", "max_waiting_tokens?",
        "max_failures", "max_in_flight",
    ],
    "reference": ["num_blocks", "block_size"],
    "options": [
        "num_blocks", "block_size", "max_num_seqs", "token_budget", "max_model_len", "max_waiting",
    ],
    "settings": ["token_budget", "max_num_seqs", "max_model_len", "block_size", "num_lanes?"],
    "simulator": ["cache_bytes"],
    "memory": ["memory_bytes"],
    "rooms": ["kv_tokens"],
    "place": ["num_devices", "memory_bytes", "beam", "beam_simulations", "local_simulations",
              "max_splits"],
    "replication": ["num_devices", "memory_bytes"],
    "dealt": ["num_devices", "memory_bytes"],
    "bound": ["num_devices", "memory_bytes"],
    "timing": ["activation_bytes", "kv_bytes_per_token", "num_tokens", "batch_size", "context_len"],
    "weights": ["batch_size"],
    "single": ["weight_bytes"],
    "roofline": ["num_layers", "hidden_size"],
}  # fmt: skip


def test_counts_are_whole_numbers() -> None:
    check_refused(SETUP, GOOD, COUNTS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("request(prompt_tokens=2.5)", "prompt_tokens: expected a sequence of token ids, got 2.5"),
        ("request(prompt_tokens='hi')", "prompt_tokens: expected a sequence of token ids"),
        ("request(eos_token_ids=2)", "eos_token_ids: expected a collection of token ids, got 2"),
        ("request(request_id=7)", "request_id: expected a non-empty string, got 7"),
        ("request(priority='4')", "priority: expected a number, smaller first, got 4"),
        ("request(arrival='4')", "arrival: expected seconds on the scheduler's clock, or None"),
        ("request(namespace=None)", "namespace: expected a string, got None"),
        ("aged_priority('4')", "aging_s: expected seconds greater than 0, got '4'"),
        ("aged_priority(float('inf'))", "aging_s: expected seconds greater than 0, got inf"),
        (
            "Scheduler(allocator, token_budget=8, max_num_seqs=4, max_model_len=16, watermark='1')",
            "watermark: expected a share in [0, 1), got '1'",
        ),
        ("Workload.of(['m'], [0.0], prompt_len=2.5)", "prompt_len: expected whole numbers, one or"),
        ("Workload.of(['m'], [0.0], output_len='4')", "output_len: expected whole numbers, one or"),
        ("Workload.of(['m'], [0.0], prompt_len=2**40)", "prompt_len: expected whole numbers"),
        ("Workload.of(['m'], ['0'])", "arrival_s: expected numbers, one or one for each request"),
        ("asked.with_lengths([1.5] * asked.num_requests, 4)", "prompt_len: expected whole numbers"),
        ("power_law_rates(3, '4')", "total: expected requests a second, 0 or more, got '4'"),
    ],
)
def test_what_is_no_number_is_refused_by_name(call: str, words: str) -> None:
    (answer,) = told(SETUP, [call])
    assert answer.startswith(f"ValueError: {words}")
