"""Rules: how the operations of neural networks may be cut, from the shapes of their tensors.

Needs no torch.
"""

from blocks.sharding.rules.along_dim import (
    along_dim_rule,
    cat_rule,
    cumsum_rule,
    pad_rule,
    select_backward_rule,
    select_rule,
    select_scatter_rule,
    slice_rule,
    slice_scatter_rule,
    softmax_backward_rule,
    softmax_rule,
    sort_rule,
    split_rule,
    stack_rule,
    unbind_rule,
)
from blocks.sharding.rules.attention import (
    attention_backward_rule,
    attention_rule,
)
from blocks.sharding.rules.conv import (
    conv_input_gradient_rule,
    conv_rule,
    conv_weight_gradient_rule,
    pool_rule,
)
from blocks.sharding.rules.einsum import (
    einsum_rule,
)
from blocks.sharding.rules.elementwise import (
    arange_rule,
    elementwise_rule,
    full_rule,
)
from blocks.sharding.rules.lookup import (
    embedding_backward_rule,
    embedding_rule,
    gather_backward_rule,
    gather_rule,
    index_add_rule,
    index_many_rule,
    index_rule,
    one_hot_rule,
    scatter_rule,
)
from blocks.sharding.rules.matmul import (
    WeightLayout,
    linear_input_gradient_rule,
    linear_rule,
    linear_weight_gradient_rule,
    matmul_rule,
)
from blocks.sharding.rules.moe import (
    grouped_matmul_rule,
    moe_combine_rule,
    moe_dispatch_rule,
    selective_scan_rule,
)
from blocks.sharding.rules.norm import (
    batch_norm_backward_rule,
    batch_norm_rule,
    group_norm_backward_rule,
    group_norm_rule,
    layer_norm_backward_rule,
    layer_norm_rule,
)
from blocks.sharding.rules.reduce import (
    Reduction,
    reduce_rule,
)
from blocks.sharding.rules.rule_of import (
    Shape,
    rule_of,
)
from blocks.sharding.rules.step import (
    accumulate_rule,
    input_rule,
    output_rule,
    parameter_rule,
    update_rule,
)
from blocks.sharding.rules.view import (
    expand_rule,
    permute_rule,
    view_rule,
)

__all__ = [
    "Reduction",
    "Shape",
    "WeightLayout",
    "accumulate_rule",
    "along_dim_rule",
    "arange_rule",
    "attention_backward_rule",
    "attention_rule",
    "batch_norm_backward_rule",
    "batch_norm_rule",
    "cat_rule",
    "conv_input_gradient_rule",
    "conv_rule",
    "conv_weight_gradient_rule",
    "cumsum_rule",
    "einsum_rule",
    "elementwise_rule",
    "embedding_backward_rule",
    "embedding_rule",
    "expand_rule",
    "full_rule",
    "gather_backward_rule",
    "gather_rule",
    "group_norm_backward_rule",
    "group_norm_rule",
    "grouped_matmul_rule",
    "index_add_rule",
    "index_many_rule",
    "index_rule",
    "input_rule",
    "layer_norm_backward_rule",
    "layer_norm_rule",
    "linear_input_gradient_rule",
    "linear_rule",
    "linear_weight_gradient_rule",
    "matmul_rule",
    "moe_combine_rule",
    "moe_dispatch_rule",
    "one_hot_rule",
    "output_rule",
    "pad_rule",
    "parameter_rule",
    "permute_rule",
    "pool_rule",
    "reduce_rule",
    "rule_of",
    "scatter_rule",
    "select_backward_rule",
    "select_rule",
    "select_scatter_rule",
    "selective_scan_rule",
    "slice_rule",
    "slice_scatter_rule",
    "softmax_backward_rule",
    "softmax_rule",
    "sort_rule",
    "split_rule",
    "stack_rule",
    "unbind_rule",
    "update_rule",
    "view_rule",
]
