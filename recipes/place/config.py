"""``PlaceConfig``: what a user says of models, devices, traffic and the service. Needs no torch."""

import dataclasses
import math
import re

from blocks._checks import check, check_count
from recipes.place.serving import Serving

DEVICES = ("cpu", "cuda")
TRACE_KINDS = ("requests", "functions")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedModel:
    """A model that clients may ask for.

    name: what they call it.
    folder: in the Hugging Face layout, or ``bundled``; None for one that is only planned for.
    profile: a profile file, the name of a bundled profile, or ``measure`` to time it here.
    ttft_s, tpot_s: longest time to the first token, and for each one after it; None for no limit.
    slo_s: longest time to the whole answer of a single-pass model; None for no limit.
    rate: requests a second to plan for; None for a share of the traffic's ``total_rate``.
    cv: coefficient of variation of the gaps between them; None for the traffic's.
    prompt_len, output_len: mean tokens to plan for; None for the traffic's.
    kv_tokens: least room of its key-value cache wherever it is loaded [tokens].
    """

    name: str
    folder: str | None = None
    profile: str = "measure"
    ttft_s: float | None = None
    tpot_s: float | None = None
    slo_s: float | None = None
    rate: float | None = None
    cv: float | None = None
    prompt_len: int | None = None
    output_len: int | None = None
    kv_tokens: int = 1024

    def __post_init__(self) -> None:
        plain = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}", self.name))
        named = "a name of letters, digits and ._:/-, at most 100"
        check(plain, "models: name", named, repr(self.name)[:110])
        check(bool(self.profile), f"{self.name}.profile", "a file, a name or measure", "''")
        for field in ("ttft_s", "tpot_s", "slo_s"):
            _positive(f"{self.name}.{field}", getattr(self, field))
        _bursty(f"{self.name}.cv", self.cv)
        ok = self.rate is None or (self.rate >= 0 and math.isfinite(self.rate))
        check(ok, f"{self.name}.rate", "0 or more requests a second", self.rate)
        for field in ("prompt_len", "output_len"):
            if getattr(self, field) is not None:
                check_count(f"{self.name}.{field}", getattr(self, field))
        check_count(f"{self.name}.kv_tokens", self.kv_tokens)
        if self.profile == "measure":
            hint = "name its folder, or a profile"
            check(self.folder is not None, f"{self.name}.folder", "one to measure", "none", hint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The devices.

    num_devices: of all nodes together; devices are numbered node by node.
    num_nodes: machines, with as many devices each.
    memory: what one device may hold, such as ``80GiB``.
    device: their kind. On ``cpu`` a device is a process.
    """

    num_devices: int = 1
    num_nodes: int = 1
    memory: str = "2GiB"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_count("num_devices", self.num_devices)
        check_count("num_nodes", self.num_nodes)
        even = self.num_devices % self.num_nodes == 0
        expected = f"a divisor of num_devices ({self.num_devices})"
        check(even, "num_nodes", expected, self.num_nodes, "nodes have as many devices each")
        check(self.device in DEVICES, "device", " or ".join(DEVICES), repr(self.device))
        check(self.memory_bytes > 0, "memory", "more than 0 bytes", repr(self.memory))

    @property
    def memory_bytes(self) -> int:
        """What one device may hold."""
        found = _SIZE.fullmatch(self.memory)
        check(found is not None, "memory", "a size such as 80GiB", repr(self.memory))
        assert found is not None
        power = " kmgt".index(found[2].lower() or " ")
        value = float(found[1]) * 1024**power
        check(math.isfinite(value), "memory", "a finite size", f"{self.memory[:40]}...")
        return int(value)

    @property
    def devices_per_node(self) -> int:
        return self.num_devices // self.num_nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Limits of every engine; see ``recipes.serve.EngineConfig``.

    num_threads: of each process on the CPU.
    pp_batches: batches of a model that is alone at work on their way through a group's stages at a
        time; None: one a stage. 1: none follows another into the stages.
    """

    token_budget: int = 512
    max_num_seqs: int = 64
    block_size: int = 16
    max_model_len: int = 2048
    num_threads: int = 1
    pp_batches: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "pp_batches" or self.pp_batches is not None:
                check_count(field.name, getattr(self, field.name))
        expected = f"at least max_num_seqs ({self.max_num_seqs}), one token a running sequence"
        ok = self.token_budget >= self.max_num_seqs
        check(ok, "token_budget", expected, self.token_budget)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What to plan for.

    total_rate: requests a second of all models that name no ``rate``, by a power law in the
        order of the file; its exponent is ``exponent`` (0: the same for all).
    cv: coefficient of variation of the gaps of each model's requests.
    prompt_len, output_len: mean tokens of models that name none.
    duration_s: of the traffic that placements are tried on, before ``scale`` compresses a trace.
    begin_s: where in a trace it begins.
    seed: of what is drawn.
    trace: a file of requests instead: ``requests`` is a CSV with a line for each, ``functions``
        one of counts a minute (``trace_kind``).
    trace_model: the heading of the model's name in a file of requests; None where the file is of
        one model.
    scale: factor on all rates.
    """

    total_rate: float = 1.0
    exponent: float = 0.5
    cv: float = 1.0
    prompt_len: int = 64
    output_len: int = 32
    duration_s: float = 120.0
    begin_s: float = 0.0
    seed: int = 0
    trace: str | None = None
    trace_kind: str = "requests"
    trace_model: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("total_rate", "duration_s", "scale"):
            _positive(name, getattr(self, name))
        _bursty("cv", self.cv)
        ok = self.exponent >= 0 and math.isfinite(self.exponent)
        check(ok, "exponent", "0 or more", self.exponent)
        check_count("prompt_len", self.prompt_len)
        check_count("output_len", self.output_len)
        begins = 0 <= self.begin_s < math.inf
        check(begins, "begin_s", "0 or more seconds", self.begin_s)
        check(self.seed >= 0, "seed", "0 or more", self.seed)
        known = " or ".join(TRACE_KINDS)
        check(self.trace_kind in TRACE_KINDS, "trace_kind", known, repr(self.trace_kind))


@dataclasses.dataclass(frozen=True)
class PlaceConfig:
    """The whole of it; see ``read_config`` for the file.

    >>> config = PlaceConfig((PlacedModel(name="chat", folder="bundled"),))
    >>> config.model("chat").folder, config.cluster.memory_bytes
    ('bundled', 2147483648)
    """

    models: tuple[PlacedModel, ...]
    cluster: Cluster = dataclasses.field(default_factory=Cluster)
    engine: EngineLimits = dataclasses.field(default_factory=EngineLimits)
    traffic: Traffic = dataclasses.field(default_factory=Traffic)
    serving: Serving = dataclasses.field(default_factory=Serving)

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        check(bool(names), "models", "at least one", "none", "add a [[models]] table")
        twice = sorted({name for name in names if names.count(name) > 1})
        check(not twice, "models", "different names", f"{twice} twice")

    def model(self, name: str) -> PlacedModel:
        """
        Raises:
            KeyError: a name that is not configured.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)


def _positive(name: str, value: float | None) -> None:
    ok = value is None or (value > 0 and math.isfinite(value))
    check(ok, name, "more than 0, finite", value)


def _bursty(name: str, value: float | None) -> None:
    check(value is None or 0.001 <= value <= 1000, name, "0.001 to 1000", value)
