"""What is compared in ``benches.place_real``: tiny models, placements, and the traffic on them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, Profile
from blocks.sched.workload import Workload, gamma_workload
from recipes.model import Decoder, ModelConfig, init_weights, save_model
from recipes.place.group import GroupSpec
from recipes.place.measure import Points
from recipes.serve.own_folder import OwnFolder
from tests.serve.models import tiny_tokenizer

SETTINGS = EngineSettings(
    token_budget=512, max_num_seqs=32, max_model_len=320, block_size=16, overlap=False
)
LIMITS = GroupSpec(
    group="measured",
    token_budget=512,
    max_num_seqs=32,
    max_model_len=320,
    block_size=16,
    pp_batches=1,  # as paces of steps are known for steps that follow one another
)
KV_TOKENS = 8192
VOCAB = 320
SIZES = {"a": (320, 8), "b": (256, 8), "c": (320, 8), "d": (256, 8)}
"""Width and layers of each model; those of one size have other weights."""
LIKE = {"c": "a", "d": "b"}
"""Whose profile holds for whom."""
PROMPT, OUTPUT = (48, 240), (2, 8)
"""Tokens of a request, drawn evenly."""
POINTS = Points(
    prefill=(1, 8, 32, 64, 65, 96, 128, 129, 160, 192, 224, 256, 320, 384, 448, 512),
    batches=(1, 2, 4, 8),
    contexts=(48, 192),
    rounds=3,
    decode_steps=3,
)
SECONDS = 14.0
"""Of traffic, a setting."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of one setting.

    load: of what the cores could do, by profile. cv: of the gaps of each model's requests.
    ttft, tpot: limits, in mean prompt steps. skew: of popularity, 0 for even.
    """

    load: float
    cv: float
    ttft: float
    tpot: float
    skew: float = 0.0

    def __str__(self) -> str:
        return f"load {self.load:g} CV {self.cv:g} TTFT x{self.ttft:g} TPOT x{self.tpot:g}"


@dataclasses.dataclass(frozen=True)
class Place:
    """A placement and its traffic.

    hosted: a group's models, a letter each. op, pp: of every group. core_of: of every device.
    stretch: of the seconds of traffic, where requests are few.
    """

    name: str
    hosted: tuple[str, ...]
    loads: tuple[Traffic, ...]
    op: int = 1
    pp: int = 1
    core_of: tuple[int, ...] = (0, 1)
    stretch: float = 1.0

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({model for models in self.hosted for model in models}))

    @property
    def placement(self) -> Placement:
        size = self.op * self.pp
        groups = []
        for at, models in enumerate(self.hosted):
            devices = tuple(range(at * size, at * size + size))
            rooms = (KV_TOKENS,) * len(models)
            groups.append(Group(devices, Configuration(self.op, self.pp), tuple(models), rooms))
        return Placement(tuple(groups))


PLACES = (
    Place(
        "pair apart",
        ("a", "b"),
        (
            Traffic(0.5, 1, 5, 2.0),
            Traffic(0.6, 2, 6, 2.0),
            Traffic(0.7, 3, 8, 2.5),
        ),
    ),
    Place(
        "pair shared",
        ("ab", "ab"),
        (
            Traffic(0.5, 1, 4, 2.0),
            Traffic(0.6, 3, 6, 2.0),
            Traffic(0.8, 2, 8, 2.5),
            Traffic(1.0, 1, 8, 2.5),
        ),
    ),
    Place(
        "three of four each",
        ("abc", "bcd"),
        (
            Traffic(0.5, 2, 3, 2.0),
            Traffic(0.7, 1, 4, 2.0),
            Traffic(0.8, 3, 10, 3.0, 0.5),
        ),
    ),
    Place(
        "two ranks a layer",
        ("ab",),
        (
            Traffic(0.5, 1, 4, 2.0),
            Traffic(0.6, 2, 6, 2.0),
            Traffic(0.8, 3, 10, 3.0),
        ),
        op=2,
        stretch=3.0,
    ),
    Place(
        "two stages",
        ("ab",),
        (
            Traffic(0.5, 1, 4, 2.0),
            Traffic(0.6, 2, 6, 2.0),
            Traffic(0.8, 3, 10, 3.0),
        ),
        pp=2,
    ),
    Place(
        "four apart on two cores",
        ("a", "b", "c", "d"),
        (
            Traffic(0.3, 1, 6, 3.0),
            Traffic(0.5, 2, 8, 3.0),
            Traffic(0.6, 3, 12, 4.0),
        ),
        core_of=(0, 1, 0, 1),
    ),
    Place(
        "four shared on two cores",
        ("ab", "cd", "ab", "cd"),
        (
            Traffic(0.4, 2, 6, 3.0),
            Traffic(0.6, 1, 6, 3.0),
            Traffic(0.8, 2, 10, 4.0),
        ),
        core_of=(0, 1, 1, 0),
    ),
    Place(
        "three on two cores",
        ("ab", "ab", "c"),
        (
            Traffic(0.5, 2, 6, 2.5),
            Traffic(0.7, 2, 8, 3.0),
        ),
        core_of=(0, 1, 0),
    ),
)


BURSTY = (
    Traffic(0.2, 4, 10, 3.0, 1.0),
    Traffic(0.35, 4, 10, 3.0, 1.0),
    Traffic(0.5, 4, 10, 3.0, 1.0),
)
APART = Place("one model a group", ("a", "b"), BURSTY)
TOGETHER = Place("all models on every group", ("ab", "ab"), BURSTY)


@contextlib.contextmanager
def saved_models() -> Iterator[dict[str, Path]]:
    """Folders of the models, random weights."""
    with OwnFolder("real") as root:
        folders = {}
        for seed, (name, (width, layers)) in enumerate(SIZES.items()):
            config = ModelConfig(
                family="llama",
                vocab_size=VOCAB,
                hidden_size=width,
                intermediate_size=3 * width,
                num_layers=layers,
                num_heads=4,
                num_kv_heads=2,
                head_dim=width // 4,
                max_positions=SETTINGS.max_model_len,
                eos_token_ids=(0,),
                dtype="float32",
            )
            decoder = Decoder(config)
            init_weights(decoder, torch.Generator().manual_seed(seed), std=0.1)
            folders[name] = Path(root) / name
            save_model(decoder, folders[name], tiny_tokenizer())
        yield folders


def workload_of(
    place: Place, load: Traffic, profiles: Mapping[str, Profile], seed: int, seconds: float
) -> Workload:
    """Traffic by what the profile says that the cores can do."""
    mean_prompt, mean_output = sum(PROMPT) / 2, sum(OUTPUT) / 2
    names = place.models
    shares = np.array([(at + 1.0) ** -load.skew for at in range(len(names))])
    shares /= shares.sum()
    prompt_s, request_s = 0.0, 0.0
    for name, share in zip(names, shares, strict=True):
        timing = profiles[name].timing((place.op, place.pp))
        alone_s = sum(timing.prefill_s(mean_prompt))
        prompt_s += share * alone_s
        later_s = sum(timing.decode_s(2, mean_prompt)) / 2
        request_s += share * (alone_s + (mean_output - 1) * later_s)
    num_cores = len(set(place.core_of)) // (place.op * place.pp)
    rate = load.load * num_cores / request_s
    rng = np.random.default_rng(seed)
    made = gamma_workload(rate * shares, load.cv, place.stretch * seconds, rng, names)
    count = made.num_requests
    prompts = rng.integers(PROMPT[0], PROMPT[1] + 1, count)
    outputs = rng.integers(OUTPUT[0], OUTPUT[1] + 1, count)
    made = made.with_lengths(prompts, outputs)
    return made.with_slo(load.ttft * prompt_s, load.tpot * prompt_s)
