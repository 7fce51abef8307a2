"""Settings of the engine and of the server: small frozen records, most important fields first."""

import dataclasses
import ipaddress
import math

from blocks._checks import check
from recipes.serve.sizes import format_bytes


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How much one engine may hold and do at once.

    kv_bytes: memory for keys and values [bytes]; None takes what ``max_num_seqs`` sequences of
        full length need, but at most a quarter of the free memory and 1 GiB.
    max_model_len: longest prompt plus output [tokens]; None for the model's own limit.
    max_num_seqs: most sequences that run in one step.
    token_budget: most tokens (prompt chunks and decodes together) computed in one step.
    block_size: tokens per cache block.
    max_waiting: longest queue [requests]; more are refused.
    policy: who runs first, ``fcfs`` or ``priority``.
    dtype: storage of weights and cache; None keeps the checkpoint's.
    kv_dtype: storage of keys and values: ``auto`` as the weights, ``fp8`` or ``int8`` with a scale
        for every token and head, which fits about twice the tokens of bfloat16.
    device: where the model runs.
    tp: processes that share every layer by its heads. pp: stages that share the layers.
        Together ``tp * pp`` processes, each with its part of the weights and of the cache; then
        ``kv_bytes`` is what each may take.
    pp_slices: runs of tokens that a step goes through the stages in, one behind another; None cuts
        it so that the last stage is done soonest, by times measured when the engine starts.
    pp_batches: batches on their way through the stages at a time; None: one a stage, so that all of
        them are at work.
    step_timeout: longest a step of several processes may take [s]; they are then ended, and with
        them the requests that ran.
    """

    kv_bytes: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    token_budget: int = 512
    block_size: int = 16
    max_waiting: int = 1024
    policy: str = "fcfs"
    dtype: str | None = None
    kv_dtype: str = "auto"
    device: str = "cpu"
    tp: int = 1
    pp: int = 1
    pp_slices: int | None = None
    pp_batches: int | None = None
    step_timeout: float = 120.0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "token_budget", "block_size", "max_waiting", "tp", "pp"):
            value = getattr(self, name)
            ok = isinstance(value, int) and value >= 1
            check(ok, name, "a positive whole number", value)
        for name in ("kv_bytes", "max_model_len", "pp_slices", "pp_batches"):
            value = getattr(self, name)
            ok = value is None or (isinstance(value, int) and value >= 1)
            check(ok, name, "a positive whole number or None", value)
        seconds = self.step_timeout
        fits = seconds > 0 and math.isfinite(seconds)
        check(fits, "step_timeout", "more than 0 seconds, finite", seconds)
        for name in ("pp_slices", "pp_batches"):
            value = getattr(self, name)
            takes_effect = value is None or self.pp > 1
            check(takes_effect, name, "None with one stage", value, "set pp=2 or more")
        known = ("float32", "bfloat16", "float16", None)
        check(self.dtype in known, "dtype", "float32, bfloat16 or float16", self.dtype)
        longer = self.max_model_len is None or self.max_model_len > 1
        check(longer, "max_model_len", "2 or more, a prompt and a token", self.max_model_len)
        kinds = ("auto", "fp8", "int8")
        check(self.kv_dtype in kinds, "kv_dtype", "auto, fp8 or int8", repr(self.kv_dtype))
        check(self.policy in ("fcfs", "priority"), "policy", "'fcfs' or 'priority'", self.policy)
        check(
            self.token_budget >= self.max_num_seqs,
            "token_budget",
            f"at least max_num_seqs ({self.max_num_seqs}), one token per running sequence",
            self.token_budget,
        )


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How the server listens and what it accepts. All times in seconds, sizes in bytes.

    host, port: where to listen; 127.0.0.1 keeps other machines out.
    api_key: bearer token wanted on every route but / and /health; needed when host is not
        loopback.
    model_name: name clients use; None takes the folder's name.
    allowed_hosts: further values of the Host header to accept on a loopback bind.
    max_body_bytes, max_header_bytes: larger requests are refused with 413 and 400.
    header_timeout, body_timeout, write_timeout: a client slower than this is cut off.
    request_timeout: longest life of a generation.
    stall_timeout: with work pending and no step for this long, /ready says 503.
    keep_alive_comment: silence on a stream after which an SSE comment is sent.
    drain_timeout: how long SIGTERM waits for running requests.
    max_connections: more are answered 503.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = dataclasses.field(default=None, repr=False)
    model_name: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_header_bytes: int = 64 * 2**10
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    request_timeout: float = 600.0
    stall_timeout: float = 30.0
    keep_alive_comment: float = 15.0
    drain_timeout: float = 30.0
    max_connections: int = 1024

    def __post_init__(self) -> None:
        check(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
        for name in (
            *("header_timeout", "body_timeout", "write_timeout", "request_timeout"),
            *("stall_timeout", "keep_alive_comment", "drain_timeout"),
        ):
            seconds = getattr(self, name)
            fits = seconds >= 0 if name == "drain_timeout" else seconds > 0
            least = "0 or more" if name == "drain_timeout" else "more than 0"
            check(fits and math.isfinite(seconds), name, f"{least} seconds, finite", seconds)
        check(self.api_key is None or len(self.api_key) >= 1, "api_key", "a non-empty key", "''")
        check(
            self.is_loopback or self.api_key is not None,
            "host",
            "a loopback address, or an API key besides",
            self.host,
            "add --api-key (or LLM_BLOCKS_API_KEY), or listen on 127.0.0.1",
        )

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or is_loopback_address(self.host)

    @property
    def body_limit(self) -> str:
        return format_bytes(self.max_body_bytes)


def is_loopback_address(host: str) -> bool:
    """Whether it is an address such as 127.0.0.2; a name that begins like one may lead anywhere."""
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False
