"""What a user reads where no plan fits."""

import pytest

from blocks.pipeline.inter_op import DoesNotFit, Shortage, SubmeshShape
from blocks.sharding import bundled_cluster
from recipes.plan.config import PlanConfig
from recipes.plan.search.no_plan import no_plan

GIB = float(2**30)


@pytest.mark.parametrize(
    ("model", "batch_size", "ways"),
    [
        ("mlp:tiny", 64, ["lower seq_len or batch_size"]),
        ("mlp:tiny", 4, ["lower seq_len"]),
        ("tests.plan.graphs:mlp", 64, ["lower batch_size"]),
        ("tests.plan.graphs:mlp", 4, []),
    ],
)
def test_ways_out_are_settings_that_the_model_has(model: str, batch_size: int, ways: list[str]):
    """A microbatch of a factory is as long as the factory makes it."""
    shape, sizes = SubmeshShape(1, 2), (GIB, GIB, 9 * GIB, 1, 10 * GIB)
    short = Shortage(0, 1, "one_f_one_b", 4, 0, 1, shape, "0", *sizes)
    config = PlanConfig(model, "8xA100", batch_size=batch_size)
    error = no_plan(DoesNotFit.by(short.short_bytes, short), bundled_cluster("8xA100"), config)
    said = str(error).partition("while one is computed; ")[2]
    assert said.endswith("use more devices (num_nodes, num_devices)")
    assert [way for way in said.split(", ")[0].split(" or use")[:1] if "lower" in way] == ways
