"""Configs for tests."""

from typing import Any

from recipes.place.config import PlaceConfig
from recipes.place.config_file import parse_config

TWO: dict[str, Any] = {
    "models": [
        {"name": "chat", "folder": "bundled", "ttft_s": 1, "tpot_s": 0.1, "rate": 3},
        {"name": "rank", "profile": "bert-1.3b", "slo_s": 0.5},
    ],
    "cluster": {"num_devices": 4, "num_nodes": 2, "memory": "16GiB"},
    "traffic": {"total_rate": 2.0, "duration_s": 50},
}


def two(*settings: str) -> PlaceConfig:
    """A model that generates and one of a single pass, on four devices."""
    return parse_config(TWO, settings)
