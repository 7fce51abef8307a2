"""What the engine and its ranks tell each other: typed frames, decoded strictly, never pickled."""

import functools
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from recipes.serve.outputs import TokenLogprob
from recipes.serve.plain_batch import PlainBatch
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw, Drawn
from recipes.serve.sampling_params import SamplingParams

MAX_FRAME_BYTES = 1 << 30


class DrawFrame(msgspec.Struct, frozen=True, array_like=True):
    """A ``Draw``; ``params`` is an index into the step's list, -1 for the plain argmax."""

    row: int
    params: int = -1
    seed: int = 0
    num_tokens: int = 0
    num_output: int = 0
    banned: tuple[int, ...] = ()
    seen: dict[int, int] = {}


class Step(msgspec.Struct, frozen=True, tag=True):
    """A batch to compute.

    number: of the step; its result carries it. copies: blocks (source, target) to copy first.
    token_ids ... table: a ``PlainBatch``, arrays as bytes. bounds: runs of tokens that go through
    the pipeline one after another. params: ``SamplingParams``, encoded.
    """

    number: int
    copies: list[tuple[int, int]]
    token_ids: bytes
    starts: bytes
    counts: bytes
    sampled: bytes
    table: bytes
    bounds: list[int]
    params: list[bytes]
    draws: list[DrawFrame]
    prompts: list[PromptRows]

    def batch(self) -> PlainBatch:
        starts = np.frombuffer(self.starts, np.int64)
        return PlainBatch(
            np.frombuffer(self.token_ids, np.int32).astype(np.int64),
            starts,
            np.frombuffer(self.counts, np.int64),
            np.frombuffer(self.sampled, np.bool_),
            np.frombuffer(self.table, np.int32).reshape(len(starts), -1).copy(),
        )


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Say where you are, in the middle of a step too."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A rank has loaded its part. pid: of its process; weight_bytes: its parameters."""

    pid: int
    weight_bytes: int


class Result(msgspec.Struct, frozen=True, tag=True):
    """What the sampling rank found: see ``StepResult``."""

    number: int
    drawn: list[Drawn]
    scores: list[list[TokenLogprob] | str]


class Pong(msgspec.Struct, frozen=True, tag=True):
    """Where a rank is: the step it works on, 0 for none, and its stack."""

    number: int
    stack: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A rank ends. at: seconds since 1970. lost_peer: because another rank is gone."""

    at: float
    traceback: str
    lost_peer: bool


Order = Step | Ping | Stop
Report = Ready | Result | Pong | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
_decode_params = functools.lru_cache(4096)(msgspec.msgpack.Decoder(SamplingParams).decode)


def step_frame(
    number: int,
    copies: list[tuple[int, int]],
    batch: PlainBatch,
    bounds: list[int],
    draws: Sequence[Draw],
    prompts: Sequence[PromptRows],
) -> Step:
    """A step as it travels."""
    known: dict[int, int] = {}
    params: list[bytes] = []
    frames = []
    for row, state in draws:
        if state.plain:
            frames.append(DrawFrame(row))
            continue
        at = known.setdefault(id(state.params), len(params))
        if at == len(params):
            params.append(encode(state.params))
        asked = state.params
        early = state.num_output < asked.min_tokens
        frames.append(
            DrawFrame(
                row,
                at,
                state.seed,
                state.num_tokens,
                state.num_output,
                tuple(state.banned) if early else (),
                dict(state.counts()) if asked.has_penalties else {},
            )
        )
    return Step(
        number,
        copies,
        batch.token_ids.astype(np.int32).tobytes(),
        batch.starts.tobytes(),
        batch.counts.tobytes(),
        batch.sampled.tobytes(),
        batch.table.tobytes(),
        bounds,
        params,
        frames,
        list(prompts),
    )


class RemoteState:
    """What a draw asks of a sequence that another process keeps; see ``Drawing``."""

    def __init__(self, frame: DrawFrame, params: SamplingParams) -> None:
        self.params, self.plain = params, frame.params < 0
        self.seed, self.banned = frame.seed, frame.banned
        self.num_tokens, self.num_output = frame.num_tokens, frame.num_output
        self._seen = frame.seen

    def counts(self) -> Mapping[int, int]:
        return self._seen


_PLAIN = SamplingParams(temperature=0.0)


def draws_of(step: Step) -> list[Draw]:
    """The draws of a step that has travelled."""
    params = [_decode_params(blob) for blob in step.params]
    return [
        Draw(frame.row, RemoteState(frame, params[frame.params] if frame.params >= 0 else _PLAIN))
        for frame in step.draws
    ]
