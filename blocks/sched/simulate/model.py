"""The model that is served: a hash of the tokens so far, and what it generates alone."""

import zlib

from blocks.sched.request import Request

VOCABULARY = 40


def mix(state: int, token: int) -> int:
    """The keys and values of a position: those of the position before it, and its token."""
    return (state * 6364136223846793005 + token * 2 + 1442695040888963407) % 2**64


def draw(state: int, index: int) -> int:
    """The token that sample ``index`` draws after a position."""
    return (mix(mix(state, index), 0) >> 33) % VOCABULARY


def states(tokens: list[int], namespace: str, known: list[int] | None = None) -> list[int]:
    """Keys and values of all positions; ``known`` holds leading ones and is extended in place."""
    known = [] if known is None else known
    state = known[-1] if known else zlib.crc32(namespace.encode())
    for token in tokens[len(known) :]:
        state = mix(state, token)
        known.append(state)
    return known


def generate_alone(request: Request, index: int) -> list[int]:
    """What sample ``index`` of a request must draw, computed without scheduler or cache."""
    state = states(list(request.prompt_tokens), request.namespace)[-1]
    enders = set(request.stop_token_ids)
    if not request.ignore_eos:
        enders |= set(request.eos_token_ids)
    output: list[int] = []
    while len(output) < request.max_tokens:
        output.append(draw(state, index))
        if output[-1] in enders and len(output) >= request.min_tokens:
            break
        state = mix(state, output[-1])
    return output
