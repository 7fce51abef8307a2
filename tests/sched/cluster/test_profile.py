"""Profiles: the text format both ways, its complaints, and the published tables."""

import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched.profile import (
    BatchTime,
    Configuration,
    Decoder,
    DecodeTime,
    Device,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
    bundled_profile,
    bundled_profiles,
    format_profile,
    parse_profile,
    roofline_profile,
    single_pass,
)

WORDS = ["BERT-1.3B", "on 2 V100s: 2026-11-21", "batch 1: 0.5", "(ü) 2 x 4"]


def draw_timing(rng: random.Random, configuration: Configuration) -> Timing:
    def stage_s() -> tuple[float, ...]:
        return tuple(rng.lognormvariate(-3, 4) for _ in range(configuration.pp))

    def counts() -> list[int]:
        return sorted(rng.sample(range(1, 10**6), rng.randint(1, 3)))

    generates = rng.random() < 0.5
    whole = not generates or rng.random() < 0.5
    grid = list(itertools.product(counts(), counts())) if generates else []
    return Timing(
        configuration,
        tuple(rng.randrange(10**12) for _ in range(configuration.pp)),
        rng.choice([0, 10**9]),
        tuple(BatchTime(n, stage_s()) for n in counts() if whole),
        rng.choice([0, 131072]),
        tuple(PrefillTime(n, stage_s()) for n in counts()) if generates else (),
        tuple(DecodeTime(b, c, stage_s()) for b, c in grid),
    )


def draw_profile(rng: random.Random) -> Profile:
    lines = [Provenance("measured", rng.choice(WORDS)), Provenance("note", rng.choice(WORDS))]
    degrees = {(rng.randint(1, 8), rng.randint(1, 4)) for _ in range(rng.randint(1, 3))}
    timings = tuple(draw_timing(rng, Configuration(*pair)) for pair in sorted(degrees))
    return Profile(rng.choice(WORDS), rng.choice(WORDS), tuple(lines), timings)


@given(st.integers(0, 2**32))
def test_what_is_written_is_read_back_equal(seed: int) -> None:
    profile = draw_profile(random.Random(seed))
    assert parse_profile(format_profile(profile)) == profile


def test_comments_and_order_of_rows_do_not_matter() -> None:
    text = format_profile(bundled_profile("bert-125m"))
    head, *blocks = text.split("\n\n")
    shuffled = "\n\n".join([head, *(block + "  # seen" for block in reversed(blocks))])
    assert parse_profile(shuffled) == parse_profile(text)


GOOD = """llm-blocks profile 1
model: m
device: d
measured: on a d

configuration 1 x 2
weight_bytes: 5 6
batch 1: 0.5 0.25
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("llm-blocks profile 1", "profile", 1, "llm-blocks profile 1"),
        ("model: m", "modell: m", 2, "one of model, device"),
        ("model: m", "", 8, "a line 'model: ...'"),
        ("measured: on a d", "heard: say", 4, "published, measured"),
        ("measured: on a d", "note: nothing", 8, "a source"),
        ("1 x 2", "1 by 2", 6, "op x pp"),
        ("1 x 2", "0 x 2", 6, "op: expected a positive whole number"),
        ("weight_bytes: 5 6", "weight_bytes: 5", 6, "weight_bytes of configuration 1 x 2"),
        ("weight_bytes: 5 6", "", 6, "a line 'weight_bytes: ...'"),
        ("weight_bytes: 5 6", "weight_bytes: 5 x", 7, "whole numbers from 0"),
        ("batch 1: 0.5 0.25", "batch 1: 0.5", 6, "2 stage times a row"),
        ("batch 1: 0.5 0.25", "batch 1: 0.5 nan", 8, "finite numbers"),
        ("batch 1: 0.5 0.25", "batch 1: 0.5 0", 6, "stage times above 0"),
        ("batch 1: 0.5 0.25", "batch one: 0.5 0.25", 8, "whole numbers from 1"),
        ("batch 1: 0.5 0.25", "batch 1 0.5 0.25", 8, "'name: values'"),
        ("batch 1: 0.5 0.25", "batch 1: 1 1\nbatch 1: 1 1", 6, "each once"),
        ("batch 1: 0.5 0.25", "activation_bytes: 1", 6, "times of batches or of decode"),
        ("batch 1: 0.5 0.25", "batch 1: 1 1\nprefill 8: 1 1", 6, "prefill and decode times"),
        ("batch 1: 0.5 0.25", "batch 1: 1 1\nconfiguration 1 x 2", 9, "each configuration once"),
    ],
)
def test_complaints_name_the_line(old: str, new: str, line: int, says: str) -> None:
    parse_profile(GOOD)
    with pytest.raises(ValueError) as raised:
        parse_profile(GOOD.replace(old, new), "my file")
    message = str(raised.value)
    assert message.startswith(f"my file line {line}: "), message
    assert says in message


def test_published_table_of_bert() -> None:
    profile = bundled_profile("bert-1.3b")
    base = profile.timing((1, 1)).requests_per_s()
    gains = {(1, 8): 6.35, (2, 8): 9.31, (4, 4): 7.86, (8, 1): 3.31, (8, 4): 8.95}
    for configuration, gain in gains.items():
        timing = profile.timing(configuration)
        assert timing.requests_per_s() / base == pytest.approx(gain, rel=2e-3)
    assert profile.latency_s((2, 8)) == pytest.approx(0.0732, abs=6e-5)
    assert profile.timing((8, 1)).stage_s(16) == (0.1835,)
    assert profile.timing((1, 1)).batch_sizes == (1, 2, 4, 8, 16)
    with pytest.raises(ValueError, match="one of 1 x 1, 1 x 2"):
        profile.timing((16, 1))
    with pytest.raises(ValueError, match="batch_size: expected one of"):
        profile.timing((1, 1)).stage_s(3)


def test_every_bundled_profile_says_where_it_comes_from() -> None:
    for name in bundled_profiles():
        profile = bundled_profile(name)
        assert any(kind == "published" for kind, _ in profile.provenance), name
        assert parse_profile(format_profile(profile)) == profile


def test_scaling_keeps_the_sources_and_adds_why() -> None:
    profile = bundled_profile("bert-1.3b")
    twice = profile.scaled("BERT-2x", time=2, weight=3, why="twice as deep")
    assert twice.latency_s() == 2 * profile.latency_s()
    assert twice.timing((1, 1)).weight_bytes[0] == 3 * profile.timing((1, 1)).weight_bytes[0]
    assert twice.provenance[:-1] == profile.provenance
    assert twice.provenance[-1].text.endswith("of BERT-1.3B: twice as deep")


def test_decode_times_lie_between_their_neighbours() -> None:
    rows = [(1, 10, 1.0), (1, 20, 2.0), (4, 10, 4.0), (4, 20, 8.0)]
    timing = Timing(
        Configuration(1, 1),
        (1,),
        kv_bytes_per_token=3,
        prefill=(PrefillTime(8, (1.0,)), PrefillTime(16, (3.0,))),
        decode=tuple(DecodeTime(b, c, (t,)) for b, c, t in rows),
    )
    for batch_size, context_len, time in rows:
        assert timing.decode_s(batch_size, context_len) == (time,)
    assert timing.decode_s(2.5, 15) == ((1.5 + 6) / 2,)
    assert timing.decode_s(7, 10) == (7.0,), "the slope goes on"
    assert timing.decode_s(1, 1) == (1.0,), "and holds below"
    assert [timing.prefill_s(n)[0] for n in (1, 8, 12, 16, 24)] == [1, 1, 2, 3, 5]
    assert timing.device_bytes(kv_tokens=10) == 31
    with pytest.raises(ValueError, match="a full grid"):
        dataclasses.replace(timing, decode=timing.decode[:-1])


def test_single_pass_profiles_cut_weights_evenly() -> None:
    profile = single_pass("m", "d", {(2, 2): [0.1, 0.2]}, 10)
    assert profile.timing((2, 2)).weight_bytes == (3, 3)


def test_rooflines_are_bound_by_reading_then_by_arithmetic() -> None:
    size = Decoder(1e9, 10, 1000, 1000)
    device = Device("d", 1e14, 1e12, 1e11, 1e-5, 1e-3)
    profile = roofline_profile("m", size, device, [(2, 1), (1, 1), (1, 2)])
    assert profile.provenance[0].kind == "simulated"
    assert parse_profile(format_profile(profile)) == profile
    one, halves, two = (profile.timing(degrees) for degrees in ((1, 1), (1, 2), (2, 1)))
    reading_s = 2e9 / 1e12
    assert one.decode_s(1, 1)[0] == pytest.approx(reading_s + 1e-3, rel=1e-5)
    assert one.prefill_s(8192)[0] == pytest.approx(2e9 * 8192 / 1e14 + 1e-3, rel=0.1)
    assert sum(halves.decode_s(1, 1)) == pytest.approx(reading_s + 2e-3 + 1e-5, rel=1e-3)
    assert two.decode_s(1, 1)[0] == pytest.approx(reading_s / 2 + 1e-3 + 20e-5, rel=1e-3)
    assert (one.weight_bytes, halves.weight_bytes) == ((2 * 10**9,), (10**9,) * 2)
    assert two.kv_bytes_per_token == 500
    with pytest.raises(ValueError, match="flops: expected a positive number"):
        roofline_profile("m", size, device._replace(flops=0), [(1, 1)])
