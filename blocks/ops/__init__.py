"""The small operations between attention calls: norms, rope, activations, linear, sampling."""

from blocks.ops._norm import Normed, norm_backward_work, norm_work
from blocks.ops.activation import (
    activation_backward_work,
    activation_work,
    gated_backward_work,
    gated_work,
    gelu,
    gelu_and_mul,
    relu,
    silu_and_mul,
)
from blocks.ops.adamw import AdamW, adamw_step, adamw_work
from blocks.ops.cross_entropy import cross_entropy, cross_entropy_work
from blocks.ops.grouped_linear import grouped_linear, grouped_linear_work
from blocks.ops.layer_norm import layer_norm
from blocks.ops.linear import linear, linear_work
from blocks.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_work
from blocks.ops.logprobs import TokenLogprobs, top_logprobs, top_logprobs_work
from blocks.ops.moe import moe, moe_work
from blocks.ops.penalties import add_logit_bias, apply_penalties, penalties_work
from blocks.ops.quant import QuantizedRows, QuantizedWeight, quantize_weight
from blocks.ops.quant_linear import quant_linear, quant_linear_work
from blocks.ops.quantize_rows import quantize_rows, quantize_rows_work
from blocks.ops.rms_norm import rms_norm
from blocks.ops.rope import apply_rope, rope_work
from blocks.ops.rope_frequencies import (
    LinearScaling,
    Llama3Scaling,
    RopeFrequencies,
    RopeScaling,
    YarnScaling,
    rope_frequencies,
    rope_table,
)
from blocks.ops.route import route, route_work
from blocks.ops.routing import Routing
from blocks.ops.sampling import sample, sample_work
from blocks.ops.token_losses import TokenLosses

__all__ = [
    "AdamW",
    "LinearScaling",
    "Llama3Scaling",
    "Normed",
    "QuantizedRows",
    "QuantizedWeight",
    "RopeFrequencies",
    "RopeScaling",
    "Routing",
    "TokenLogprobs",
    "TokenLosses",
    "YarnScaling",
    "activation_backward_work",
    "activation_work",
    "adamw_step",
    "adamw_work",
    "add_logit_bias",
    "apply_penalties",
    "apply_rope",
    "cross_entropy",
    "cross_entropy_work",
    "gated_backward_work",
    "gated_work",
    "gelu",
    "gelu_and_mul",
    "grouped_linear",
    "grouped_linear_work",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_work",
    "linear_work",
    "moe",
    "moe_work",
    "norm_backward_work",
    "norm_work",
    "penalties_work",
    "quant_linear",
    "quant_linear_work",
    "quantize_rows",
    "quantize_rows_work",
    "quantize_weight",
    "relu",
    "rms_norm",
    "rope_frequencies",
    "rope_table",
    "rope_work",
    "route",
    "route_work",
    "sample",
    "sample_work",
    "silu_and_mul",
    "top_logprobs",
    "top_logprobs_work",
]
