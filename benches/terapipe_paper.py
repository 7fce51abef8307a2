"""The published measurements of token pipelines on V100 clusters, as data.

Ten settings of GPT-3-shaped models on AWS p3.16xlarge nodes (8 V100 of 16 GB, 25 Gbit/s between
nodes) with and without token slices, the same for longer sequences, and uniform slicings.
Reference: Li et al. 2021, TeraPipe, Table 1, Figures 5 to 7 and the appendix.
"""

from typing import NamedTuple


class Model(NamedTuple):
    """Shape of a decoder; heads are 128 wide."""

    name: str
    num_layers: int
    hidden_size: int


GPT_1B = Model("1B", 24, 2048)
GPT_13B = Model("13B", 40, 5120)
GPT_44B = Model("44B", 96, 6144)
GPT_175B = Model("175B", 96, 12288)


class Setting(NamedTuple):
    """One published pair of measurements.

    row: number in the paper's table; 0 for the longer sequences.
    data, pipeline, operation: parallel degrees; ``batch`` sequences over all replicas.
    without_s, with_s: seconds of an iteration without and with token slices.
    lengths: published slices of every sequence; empty where the paper gives none.
    """

    row: int
    model: Model
    batch: int
    data: int
    pipeline: int
    operation: int
    without_s: float
    with_s: float
    lengths: tuple[int, ...] = ()
    seq_len: int = 2048

    @property
    def name(self) -> str:
        where = f"row {self.row}" if self.row else "longer"
        return f"{where}: {self.model.name} {self.data}/{self.pipeline}/{self.operation}"

    @property
    def speed_up(self) -> float:
        return self.without_s / self.with_s

    @property
    def rows_per_replica(self) -> int:
        return self.batch // self.data

    @property
    def layers_per_stage(self) -> int:
        return self.model.num_layers // self.pipeline


SETTINGS = (
    Setting(1, GPT_1B, 128, 8, 24, 1, 1.517, 1.254, (776, 640, 632)),
    Setting(2, GPT_1B, 72, 2, 12, 8, 1.018, 1.018, (2048,)),
    Setting(3, GPT_1B, 72, 1, 24, 8, 0.913, 0.913, (2048,)),
    Setting(4, GPT_13B, 32, 2, 20, 8, 2.637, 1.891, (1024, 1024)),
    Setting(5, GPT_13B, 32, 1, 40, 8, 1.863, 1.328, (704, 688, 656)),
    Setting(6, GPT_44B, 8, 4, 96, 1, 13.319, 7.103, (64,) * 26 + (56,) * 6 + (48,)),
    Setting(7, GPT_44B, 8, 2, 24, 8, 4.311, 2.771, (368, 384, 384, 368, 256, 288)),
    Setting(8, GPT_44B, 8, 1, 48, 8, 2.662, 1.111, (384, 384, 368, 320, 296, 296)),
    Setting(9, GPT_175B, 2, 1, 96, 4, 9.990, 1.481, (120,) * 4 + (112,) * 6 + (104,) * 8 + (64,)),
    Setting(10, GPT_175B, 2, 1, 48, 8, 5.822, 1.160, (128,) * 16),
)
LONGER = (
    Setting(0, GPT_13B, 8, 1, 40, 8, 2.526, 0.913, (), 4096),
    Setting(0, GPT_13B, 4, 1, 40, 8, 3.754, 0.756, (), 6144),
    Setting(0, GPT_13B, 2, 1, 40, 8, 4.978, 0.636, (), 8192),
)
UNIFORM_S = {
    8: {1: 2.662, 4: 1.241, 8: 1.255, 16: 1.241},
    9: {1: 9.990, 4: 2.902, 8: 1.892, 16: 1.547, 32: 1.593, 64: 2.227, 128: 3.252},
}
"""Seconds by number of uniform slices, for two rows of the table."""

FITTED = (4, 5)
"""Rows whose times the cost model may be fitted to; all others are predictions."""
