"""What is compiled ahead of time: every kernel at the shapes of real models."""

from blocks.ops._activation import TILE as ACTIVATION_TILE
from blocks.ops._norm_triton import (
    TILE_PARTIALS,
    TILE_SUMS,
    WIDE_TILE,
    norm_backward_tiles,
    norm_tiles,
)
from blocks.ops._rope import rope_tiles
from blocks.ops.logprobs import logprobs_tiles
from blocks.ops.sampling import SAMPLE_WARPS, sample_tiles
from tests.aot import AotCase
from tests.ops import aot_training
from tests.ops.aot_matrix_cases import MATRIX_CASES

NORM = "blocks.ops._triton.norm:_norm_kernel"
NORM_BACKWARD = "blocks.ops._triton.norm_backward:_norm_backward_kernel"
SUM_PARTIALS = "blocks.ops._triton.norm_backward:_sum_partials_kernel"
NORM_WIDE = "blocks.ops._triton.norm_wide:"
ROPE = "blocks.ops._triton.rope:_rope_kernel"
ACTIVATION = "blocks.ops._triton.activation:_activation_kernel"
ACTIVATION_BACKWARD = "blocks.ops._triton.activation:_activation_backward_kernel"
SAMPLE = "blocks.ops._triton.sampling:_sample_kernel"


def norm(
    name: str, hidden_size: int, *, residual: bool, layer: bool = False, save: bool = False
) -> AotCase:
    tile_rows, tile_hidden, num_warps = norm_tiles(hidden_size)
    signature = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "y_ptr": "*bf16"}
    absent = dict.fromkeys(("residual_ptr", "total_ptr", "bias_ptr", "mean_ptr", "rstd_ptr"))
    present = [*(["residual_ptr", "total_ptr"] if residual else []), *(["bias_ptr"] * layer)]
    signature |= dict.fromkeys(present, "*bf16")
    kept = [*(["mean_ptr"] * (save and layer)), *(["rstd_ptr"] * save)]
    signature |= dict.fromkeys(kept, "*fp32")
    present += kept
    signature |= {"num_rows": "i32", "hidden_size": "i32", "eps": "fp32", "weight_offset": "fp32"}
    return AotCase(
        name=name,
        kernel=NORM,
        signature=signature,
        constexprs={
            **{key: None for key in absent if key not in present},
            "IS_LAYER": layer,
            "ROUND_FIRST": not layer,
            "TILE_ROWS": tile_rows,
            "TILE_HIDDEN": tile_hidden,
        },
        aligned=("x_ptr", "weight_ptr", "y_ptr", "hidden_size", *present),
        num_warps=num_warps,
    )


def norm_backward(
    name: str, hidden_size: int, *, residual: bool, layer: bool = False, dtype: str = "*bf16"
) -> AotCase:
    tiles = norm_backward_tiles(hidden_size, 4 if dtype == "*fp32" else 2)
    even = hidden_size % 16 == 0
    signature = dict.fromkeys(("dy_ptr", "x_ptr", "weight_ptr", "dx_ptr"), dtype)
    signature |= {"rstd_ptr": "*fp32", "dweight_ptr": "*fp32"}
    signature |= {"dtotal_ptr": dtype} if residual else {}
    signature |= {"mean_ptr": "*fp32", "dbias_ptr": "*fp32"} if layer else {}
    absent = [key for key in ("dtotal_ptr", "mean_ptr", "dbias_ptr") if key not in signature]
    tensors = tuple(signature)
    signature |= {"num_rows": "i32", "hidden_size": "i32", "weight_offset": "fp32"}
    return AotCase(
        name=name,
        kernel=NORM_BACKWARD,
        signature=signature,
        constexprs={
            **dict.fromkeys(absent),
            "ROUND_FIRST": not layer,
            "TILE_ROWS": tiles.rows,
            "TILE_HIDDEN": tiles.hidden,
            "REREAD": tiles.reread,
            "NUM_STAGES": tiles.num_stages,
        },
        aligned=(*tensors, "hidden_size") if even else tensors,
        num_warps=tiles.num_warps,
        claims={"sm_80": ("LDGSTS",), "sm_90": ("LDGSTS",)} if even and not tiles.reread else {},
    )


def norm_wide(name: str, *, layer: bool) -> AotCase:
    tensors = ("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "total_ptr")
    signature = {**dict.fromkeys(tensors, "*bf16"), "rstd_ptr": "*fp32"}
    signature |= {"bias_ptr": "*bf16", "mean_ptr": "*fp32"} if layer else {}
    pointers = tuple(signature)
    signature |= {"hidden_size": "i32", "eps": "fp32", "weight_offset": "fp32"}
    absent = {} if layer else {"bias_ptr": None, "mean_ptr": None}
    return AotCase(
        name=name,
        kernel=NORM_WIDE + "_wide_norm_kernel",
        signature=signature,
        constexprs={**absent, "IS_LAYER": layer, "ROUND_FIRST": not layer, "TILE": WIDE_TILE},
        aligned=(*pointers, "hidden_size"),
        num_warps=8,
    )


def norm_wide_backward(name: str, kernel: str, *, layer: bool) -> AotCase:
    sums = kernel == "_wide_row_sums_kernel"
    tensors = ("dy_ptr", "x_ptr", "weight_ptr", *(() if sums else ("dtotal_ptr", "dx_ptr")))
    of_layer = ("mean_ptr", "centre_ptr", *(() if sums else ("dbias_ptr",)))
    numbers = ("rstd_ptr", "projection_ptr", *(() if sums else ("dweight_ptr",)))
    signature = dict.fromkeys(tensors, "*bf16") | dict.fromkeys(numbers, "*fp32")
    signature |= dict.fromkeys(of_layer, "*fp32") if layer else {}
    pointers = tuple(signature)
    signature |= {} if sums else {"num_rows": "i32"}
    signature |= {"hidden_size": "i32", "weight_offset": "fp32"}
    choices = {"ROUND_FIRST": not layer, "NUM_STAGES": 2, "TILE": WIDE_TILE // 4}
    return AotCase(
        name=name,
        kernel=NORM_WIDE + kernel,
        signature=signature,
        constexprs={
            **({} if layer else dict.fromkeys(of_layer)),
            **({"TILE": WIDE_TILE} if sums else choices),
        },
        aligned=(*pointers, "hidden_size"),
        num_warps=8 if sums else 4,
    )


def sum_partials(name: str) -> AotCase:
    return AotCase(
        name=name,
        kernel=SUM_PARTIALS,
        signature={
            "partials_ptr": "*fp32",
            "out_ptr": "*bf16",
            "num_partials": "i32",
            "hidden_size": "i32",
        },
        constexprs={"TILE_PARTIALS": TILE_PARTIALS, "TILE_HIDDEN": TILE_SUMS},
        aligned=("partials_ptr", "out_ptr", "hidden_size"),
    )


def rope(
    name: str,
    head_dim: int,
    half: int,
    *,
    inplace: bool = False,
    interleaved: bool = False,
    inverse: bool = False,
) -> AotCase:
    heads, pairs, rest = rope_tiles(half, 0 if inplace else head_dim - 2 * half)
    tensors = ("query", "key", "query_out", "key_out")
    signature = {f"{t}_ptr": "*bf16" for t in tensors}
    signature |= {f"stride_{t}_{by}": "i32" for t in tensors for by in ("token", "head")}
    aligned = tuple(signature)
    signature |= {"positions_ptr": "*i64", "cos_sin_ptr": "*fp32"}
    signature |= dict.fromkeys(("num_heads", "num_kv_heads", "half", "head_dim"), "i32")
    return AotCase(
        name=name,
        kernel=ROPE,
        signature=signature,
        constexprs={
            "INTERLEAVED": interleaved,
            "INVERSE": inverse,
            "TILE_HEADS": heads,
            "TILE_HALF": pairs,
            "TILE_REST": rest,
        },
        aligned=(*aligned, "positions_ptr", "cos_sin_ptr", "half", "head_dim"),
    )


def activation(kind: str, *, gated: bool, backward: bool = False) -> AotCase:
    tensors = ("dy_ptr", "x_ptr", "dx_ptr") if backward else ("x_ptr", "y_ptr")
    return AotCase(
        name=f"{kind}{'-and-mul' if gated else ''}{'-backward' if backward else ''}",
        kernel=ACTIVATION_BACKWARD if backward else ACTIVATION,
        signature={**dict.fromkeys(tensors, "*bf16"), "hidden_size": "i32"},
        constexprs={"ACTIVATION": kind, "GATED": gated, "TILE": ACTIVATION_TILE},
        aligned=(*tensors, "hidden_size"),
    )


def sample(name: str, vocab_size: int, dtype: str, *, per_row: bool = True) -> AotCase:
    """Parameters one per row as a server has them, or a number each for all rows."""
    parameters: dict[str, str] = dict.fromkeys(("temperature", "top_p", "min_p"), "fp32")
    parameters |= dict.fromkeys(("top_k", "seeds", "positions"), "i32")
    if per_row:
        parameters = {k: "*fp32" if t == "fp32" else "*i64" for k, t in parameters.items()}
    scratch = {"drawn_ptr": "*i64", "maxima_ptr": "*fp32", "groups_ptr": "*i32"}
    pointers = {"logits_ptr": dtype, **scratch} | (parameters if per_row else {})
    sizes = {"stride_logits_row": "i32", "vocab_size": "i32"}
    return AotCase(
        name=name,
        kernel=SAMPLE,
        signature={**parameters, **pointers, **sizes},
        constexprs={**sample_tiles(vocab_size), "PER_ROW": 0b111111 if per_row else 0},
        aligned=(*pointers, *sizes),
        num_warps=SAMPLE_WARPS,
    )


def logprobs(name: str, vocab_size: int, dtype: str) -> AotCase:
    pointers = {"logits_ptr": dtype, "token_ids_ptr": "*i64", "chosen_ptr": "*fp32"}
    pointers |= {"rank_ptr": "*i64", "top_ptr": "*fp32", "top_ids_ptr": "*i64"}
    pointers |= {"maxima_ptr": "*fp32", "groups_ptr": "*i32"}
    sizes = dict.fromkeys(("stride_logits_row", "vocab_size", "num_top"), "i32")
    return AotCase(
        name=name,
        kernel="blocks.ops._triton.logprobs:_logprobs_kernel",
        signature={**pointers, **sizes},
        constexprs=logprobs_tiles(vocab_size),
        aligned=(*pointers, "stride_logits_row", "vocab_size"),
        num_warps=SAMPLE_WARPS,
    )


def edit(name: str, *, penalties: bool) -> AotCase:
    present = {"counts_ptr": "*i64"}
    present |= dict.fromkeys(("repetition_ptr", "presence_ptr", "frequency_ptr"), "*fp32")
    absent = {"bias_ptr": "*fp32"}
    if not penalties:
        present, absent = absent, present
    sizes = ("num_entries", "num_rows", "vocab_size", "stride_logits_row", "stride_logits_token")
    return AotCase(
        name=name,
        kernel="blocks.ops._triton.penalties:_edit_kernel",
        signature={
            "logits_ptr": "*fp32",
            "rows_ptr": "*i64",
            "token_ids_ptr": "*i64",
            **present,
            **dict.fromkeys(sizes, "i32"),
        },
        constexprs={**dict.fromkeys(absent), "TILE": 256},
        num_warps=2,
    )


CASES = [
    norm("rms-4096-residual", 4096, residual=True, save=True),
    norm("rms-head-128", 128, residual=False),
    norm("rms-32768-residual", 32768, residual=True),
    norm("layer-12288-residual", 12288, residual=True, layer=True),
    norm_backward("rms-backward-128", 128, residual=False),
    norm_backward("rms-backward-4096-residual", 4096, residual=True),
    norm_backward("rms-backward-4095-residual", 4095, residual=True),
    norm_backward("rms-backward-8192-fp32", 8192, residual=True, dtype="*fp32"),
    norm_backward("rms-backward-16384-residual", 16384, residual=True),
    norm_backward("layer-backward-8192-residual", 8192, residual=True, layer=True),
    sum_partials("norm-backward-sums"),
    norm_wide("rms-wide", layer=False),
    norm_wide("layer-wide", layer=True),
    norm_wide_backward("layer-wide-row-sums", "_wide_row_sums_kernel", layer=True),
    norm_wide_backward("rms-wide-backward", "_wide_backward_kernel", layer=False),
    norm_wide_backward("layer-wide-backward", "_wide_backward_kernel", layer=True),
    rope("rope-128-inplace", 128, 64, inplace=True),
    rope("rope-partial-interleaved-backward", 256, 32, interleaved=True, inverse=True),
    activation("silu", gated=True),
    activation("gelu", gated=True),
    activation("gelu_tanh", gated=True),
    activation("relu", gated=False),
    activation("silu", gated=True, backward=True),
    activation("gelu", gated=True, backward=True),
    activation("gelu_tanh", gated=True, backward=True),
    activation("relu", gated=False, backward=True),
    sample("sample-128k-bf16", 128_256, "*bf16"),
    sample("sample-256k-fp32", 256_000, "*fp32"),
    sample("sample-32k-fp32", 32_000, "*fp32", per_row=False),
    logprobs("logprobs-128k-bf16", 128_256, "*bf16"),
    logprobs("logprobs-256k-fp32", 256_000, "*fp32"),
    edit("penalties", penalties=True),
    edit("logit-bias", penalties=False),
    *MATRIX_CASES,
    *aot_training.CASES,
]
