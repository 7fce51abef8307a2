"""Random numbers of tokens: waiting times that depend on nothing but stream and token id."""

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """The finaliser of SplitMix64 (Stafford's variant 13) on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def arrival_times(stream, token_ids):
    """Exponential waiting times, a pure function of the stream and the token id.

    The uniform number keeps 32 bits below one half; -log(1 - u) is computed as Kahan's
    log(w) u / (w - 1) with w = 1 - u rounded, exact to fp32 also where u is tiny.
    """
    bits = mix(stream + (token_ids.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)
    high = (bits >> 32).to(tl.float64)
    u = tl.minimum((high + 0.5) * 2.3283064365386963e-10, 0.999999940395355).to(tl.float32)
    w = 1.0 - u
    slope = tl.where(w == 1.0, -1.0, tl.log(w) / tl.where(w == 1.0, 1.0, 1.0 - w))
    return -slope * u
