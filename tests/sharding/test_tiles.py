"""Products in tiles: never quicker than their arithmetic, exact where every tile is full."""

import dataclasses
import itertools
import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from blocks.sharding import Mesh, MeshCost, OpRule, bundled_cluster, rules
from blocks.sharding.cluster import Curve, DeviceKind, Tiles
from blocks.sharding.product import Product

SIZES = st.integers(1, 3000)
PRODUCTS = st.tuples(st.integers(1, 9), SIZES, SIZES, st.integers(1, 40_000))
SHAPES = st.tuples(
    st.sampled_from((1, 32, 64, 128, 256)), st.sampled_from((1, 48, 128)), st.floats(0.3, 1.0)
)
TILES = st.tuples(
    st.integers(1, 132),
    st.lists(SHAPES, min_size=1, max_size=3).map(tuple),
    st.sampled_from(((1,), (1, 2, 3), (1, 4, 16))),
)
Drawn = tuple[int, tuple[tuple[int, int, float], ...], tuple[int, ...]]
Sizes = tuple[int, int, int, int]
V100 = bundled_cluster("p3.16xlarge").kinds[0]


@given(drawn=TILES, sizes=PRODUCTS)
def test_no_product_is_quicker_than_its_arithmetic(drawn: Drawn, sizes: Sizes) -> None:
    tiles, product = Tiles(*drawn), Product(*sizes)
    assert tiles.flops(product) >= product.flops


@given(drawn=TILES, sizes=PRODUCTS, more=st.tuples(*[st.integers(0, 300)] * 4))
def test_larger_products_take_no_less_time(drawn: Drawn, sizes: Sizes, more: Sizes) -> None:
    tiles, product = Tiles(*drawn), Product(*sizes)
    larger = Product(*(size + extra for size, extra in zip(product, more, strict=True)))
    assert tiles.flops(larger) >= tiles.flops(product)


@given(
    drawn=TILES,
    shape=st.integers(0, 2),
    waves=st.integers(1, 4),
    depth=st.integers(1, 9999),
)
def test_whole_waves_of_whole_tiles_waste_nothing(
    drawn: Drawn, shape: int, waves: int, depth: int
) -> None:
    tiles = Tiles(*drawn)
    high, wide, share = tiles.shapes[shape % len(tiles.shapes)]
    count, rows = tiles.num_processors, waves * high
    for product in (
        Product(count, rows, wide, depth),
        Product(1, rows, wide * count, depth),
        Product(1, high * count, wide * waves, depth),
    ):
        assert tiles.flops(product) <= product.flops / share * (1 + 1e-12)
        alone = dataclasses.replace(tiles, shapes=((high, wide, 1.0),))
        assert alone.flops(product) == product.flops


@given(drawn=TILES, sizes=PRODUCTS)
def test_time_is_that_of_waves_counted_one_by_one(drawn: Drawn, sizes: Sizes) -> None:
    tiles, product = Tiles(*drawn), Product(*sizes)
    best = math.inf
    for (high, wide, share), parts in itertools.product(tiles.shapes, tiles.parts):
        left = parts * product.count
        left *= len(range(0, product.rows, high)) * len(range(0, product.columns, wide))
        depth = math.ceil(product.depth / parts)
        depth = max(depth, high, wide) if parts > 1 else depth
        took = 0
        while left > 0:
            left -= tiles.num_processors
            took += 2 * tiles.num_processors * high * wide * depth
        best = min(best, took / share)
    assert tiles.flops(product) == pytest.approx(best, rel=1e-12)


def test_one_tile_too_many_is_a_wave_of_its_own() -> None:
    tiles = Tiles(80, ((128, 128, 1.0),))
    full = Product(1, 1024, 1280, 64)
    assert tiles.flops(full) == full.flops
    assert tiles.flops(full._replace(columns=1281)) == 2 * full.flops
    assert tiles.flops(full._replace(rows=1, columns=1)) == full.flops


def test_few_tiles_of_great_depth_are_computed_in_parts() -> None:
    whole, cut = Tiles(80, ((128, 128, 1.0),)), Tiles(80, ((128, 128, 1.0),), (1, 2, 4))
    gradient = Product(1, 128, 128 * 20, 100_000)  # of a weight: 20 tiles for 80 processors
    assert whole.flops(gradient) == 4 * gradient.flops
    assert cut.flops(gradient) == gradient.flops


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": ()},
        {"shapes": ((0, 8, 1.0),)},
        {"shapes": ((8, 8, 1.5),)},
        {"parts": (2, 4)},
        {"parts": (1, 1)},
        {"num_processors": 0},
    ],
)
def test_tiles_that_cannot_be_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(Tiles(80, ((128, 128, 1.0),)), **change)


CONVOLUTION = ((32, 160, 56, 56), (320, 160, 3, 3), (32, 320, 28, 28))
GROUPED = ((32, 160, 56, 56), (320, 40, 3, 3), (32, 320, 28, 28))


@pytest.mark.parametrize(
    ("rule", "product"),
    [
        (rules.conv_rule(*CONVOLUTION), Product(1, 32 * 784, 320, 160 * 9)),
        (rules.conv_input_gradient_rule(*CONVOLUTION), Product(1, 32 * 784, 160, 320 * 9)),
        (rules.conv_weight_gradient_rule(*CONVOLUTION), Product(1, 320, 160 * 9, 32 * 784)),
        (rules.conv_rule(*GROUPED, groups=4), Product(4, 32 * 784, 80, 40 * 9)),
        (rules.conv_input_gradient_rule(*GROUPED, groups=4), Product(4, 32 * 784, 40, 80 * 9)),
        (rules.conv_weight_gradient_rule(*GROUPED, groups=4), Product(4, 80, 40 * 9, 32 * 784)),
        (rules.matmul_rule((5, 8, 6), (5, 6, 4)), Product(5, 8, 4, 6)),
        (rules.linear_rule((2, 8, 6), (4, 6), bias=True), Product(1, 16, 4, 6)),
        (rules.linear_weight_gradient_rule((2, 8, 4), (2, 8, 6)), Product(1, 4, 6, 16)),
        (rules.moe_dispatch_rule((2, 8, 4, 3), (2, 8, 6)), Product(2, 4 * 3, 6, 8)),
    ],
)
def test_operations_as_products_of_matrices(rule: OpRule, product: Product) -> None:
    found = rule.product_of([factor.size for factor in rule.factors])
    assert found == product
    assert product.flops == rule.flops()
    assert OpRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_a_transposed_convolution_has_the_places_of_what_it_reads() -> None:
    shapes = ((8, 16, 28, 28), (16, 32, 2, 2), (8, 32, 56, 56))
    rule = rules.conv_rule(*shapes, transposed=True)
    assert rule.product_of([f.size for f in rule.factors]) == Product(1, 8 * 784, 32, 16 * 4)


def test_other_operations_are_no_products() -> None:
    attention = rules.attention_rule((2, 4, 8, 16), (2, 4, 8, 16), (2, 4, 8, 16))
    for rule in (
        attention,
        rules.elementwise_rule([(8, 4)] * 2),
        rules.selective_scan_rule((2, 4, 8), 3),
    ):
        assert rule.product_of([factor.size for factor in rule.factors]) is None


def test_devices_of_known_tiles_pay_for_what_sticks_out() -> None:
    cost = MeshCost(bundled_cluster("p3.16xlarge"), Mesh.of(data=2))
    rule = rules.matmul_rule((1024, 4096), (4096, 1280))
    whole = cost.compute_s(rule, (1024, 1280, 4096), 0, "float32")
    assert whole == V100.op_s(rule.flops(), 0, "float32")
    assert cost.compute_s(rule, (1024, 1025, 4096), 0, "float32") > 0.85 * whole
    assert cost.compute_s(rule, (1025, 1281, 4096), 0, "float32") > 1.02 * whole
    half = (rule.flops() // 2, 0, "float16")
    assert cost.compute_s(rule, (1024, 640, 4096), 0, "float16") == V100.op_s(*half)


def test_float32_hides_and_touches_at_a_rate_of_its_own() -> None:
    flops, touched = 10**10, 10**8
    both = V100.flops_s(flops, "float32"), V100.memory_s(touched, "float32")
    assert V100.op_s(flops, touched, "float32") == max(both) + V100.launch_s
    assert both[1] < V100.memory_s(touched, "float16") == V100.memory_s(touched)
    both = V100.flops_s(flops, "float16"), V100.memory_s(touched, "float16")
    assert V100.op_s(flops, touched, "float16") == sum(both) + V100.launch_s


def test_kinds_from_before_there_were_tiles_are_read_and_written_as_they_were() -> None:
    for name in ("8xA100", "2xCPU"):
        kind = bundled_cluster(name).kinds[0]
        data = kind.to_json()
        assert not {"tiles", "hides", "touched_per_s"} & set(data)
        assert DeviceKind.from_json(json.loads(json.dumps(data))) == kind
    assert DeviceKind.from_json(json.loads(json.dumps(V100.to_json()))) == V100
    sources = {name: text for name, text in V100.sources.items() if name != "tiles"}
    with pytest.raises(ValueError, match="sources of V100"):
        dataclasses.replace(V100, sources=sources)


def test_what_makes_no_difference_is_refused() -> None:
    curve = Curve((1 << 20,), (1e-3,))
    for change, words in (
        ({"hides": ("flaot32",)}, r"hides of V100.*: expected dtypes of"),
        ({"tiles": {"tf32": V100.tiles["float32"]}}, r"tiles of V100.*got \['tf32'\]"),
        ({"elementwise": curve}, r"touched_per_s of V100.*elementwise says"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(V100, **change)
