"""The matrix kernels ahead of time: every row of their tables, at the shapes of real models."""

from blocks.ops import _matrix_tiles as tiling
from blocks.ops._expert_launch import TILE, route_tile
from blocks.ops._quant_launch import TILE as SUM_TILE
from tests.aot import AotCase

QUANT = "blocks.ops._triton.quant_linear"
GROUPED = "blocks.ops._triton.grouped_linear"
ROUTE = "blocks.ops._triton.route"
CHIPS = ("sm_80", "sm_90", "gfx942")
MATRIX_UNITS = {"sm_80": ("HMMA", "LDGSTS"), "sm_90": ("HGMMA",), "gfx942": ("v_mfma",)}


def product(precision: str = "tf32") -> dict[str, object]:
    return {"INTERPRET": False, "PRECISION": precision}


def tiled(tiles: tiling.Tiles) -> dict[str, int]:
    return {"TILE_ROWS": tiles.rows, "TILE_OUT": tiles.outs, "TILE_IN": tiles.ins}


def named(tiles: tiling.Tiles) -> str:
    return f"{tiles.rows}x{tiles.outs}x{tiles.ins}"


def decode(
    chip: str,
    tiles: tiling.Tiles,
    format: str,
    *,
    columns: int = 128,
    zeros: bool = False,
    splits: bool = False,
    dtype: str = "bf16",
) -> AotCase:
    signature = {"x_ptr": f"*{dtype}", "stride_x_row": "i32"}
    signature |= {"values_ptr": "*i8" if format == "int8" else "*u8", "stride_values_row": "i32"}
    signature |= {"scales_ptr": "*fp32", **({"zeros_ptr": "*u8"} if zeros else {})}
    signature |= {"bias_ptr": f"*{dtype}", "y_ptr": "*fp32" if splits else f"*{dtype}"}
    aligned = (*signature, "in_features", "out_features", "split_size")
    numbers = ("num_rows", "in_features", "out_features", "num_groups", "split_size")
    absent = {} if zeros else {"zeros_ptr": None}
    claims = MATRIX_UNITS[chip] if dtype != "fp32" else ()
    return AotCase(
        name=f"quant-{format}-{columns}{'-zeros' * zeros}-{dtype}-{named(tiles)}",
        kernel=f"{QUANT}:_decode_linear_kernel",
        signature=signature | dict.fromkeys(numbers, "i32"),
        constexprs={
            **absent,
            "FORMAT": format,
            "GROUP_ROWS": 1,
            "GROUP_COLUMNS": columns,
            **tiled(tiles),
            **product("ieee" if dtype == "fp32" else "tf32"),
        },
        aligned=aligned,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(chip,),
        claims=claims,
    )


def scaled(chip: str, tiles: tiling.Tiles, format: str, *, columns: int) -> AotCase:
    stored = {"int8": "*i8", "fp8": "*fp8e4nv", "bytes": "*u8"}[format]
    signature = {"x_ptr": stored, "x_scales_ptr": "*fp32", "values_ptr": stored}
    signature |= {"scales_ptr": "*fp32", "bias_ptr": "*bf16", "y_ptr": "*bf16"}
    aligned = (*signature, "in_features", "out_features")
    numbers = ("num_rows", "in_features", "out_features", "num_groups")
    claims = {
        "sm_80": ("IMMA",) if format == "int8" else ("HMMA",),
        "sm_90": ("IGMMA",) if format == "int8" else ("QGMMA",),
        "gfx942": ("v_mfma",),
    }
    return AotCase(
        name=f"scaled-{format}-{columns}-{named(tiles)}",
        kernel=f"{QUANT}:_scaled_linear_kernel",
        signature=signature | dict.fromkeys(numbers, "i32"),
        constexprs={
            "FORMAT": format,
            "GROUP_ROWS": columns or 1,
            "GROUP_COLUMNS": columns,
            **tiled(tiles),
            "TILES_TOGETHER": 8,
            "INTERPRET": False,
        },
        aligned=aligned,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(chip,),
        claims=claims[chip],
    )


def grouped(chip: str, tiles: tiling.Tiles, *, turned: bool = False) -> AotCase:
    """``turned``: the gradient of the rows, where the weight is read the other way."""
    ins_or_outs = "stride_weight_out" if turned else "stride_weight_in"
    other = "stride_weight_in" if turned else "stride_weight_out"
    signature = {"x_ptr": "*bf16", "stride_x_row": "i32", "tokens_ptr": "*i32"}
    signature |= {"weight_ptr": "*bf16", "stride_weight_group": "i32", other: "i32"}
    signature |= {"offsets_ptr": "*i32", "y_ptr": "*bf16"}
    aligned = (*signature, "out_features", "in_features")
    numbers = ("num_rows", "num_groups", "out_features", "in_features")
    claims = MATRIX_UNITS[chip] if tiles.rows >= 64 or chip != "sm_90" else ("HMMA",)
    return AotCase(
        name=f"grouped{'-turned' * turned}-{named(tiles)}",
        kernel=f"{GROUPED}:_grouped_linear_kernel",
        signature=signature | dict.fromkeys(numbers, "i32"),
        constexprs={ins_or_outs: 1, "STEPS": 8, **tiled(tiles), **product()},
        aligned=aligned,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(chip,),
        claims=claims,
    )


def grouped_weight(chip: str, tiles: tiling.Tiles) -> AotCase:
    pointers = {"x_ptr": "*bf16", "dy_ptr": "*bf16", "offsets_ptr": "*i32", "dw_ptr": "*bf16"}
    return AotCase(
        name=f"grouped-weight-{named(tiles)}",
        kernel=f"{GROUPED}:_grouped_weight_grad_kernel",
        signature=pointers | {"out_features": "i32", "in_features": "i32"},
        constexprs={**tiled(tiles), **product()},
        aligned=(*pointers, "out_features", "in_features"),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        targets=(chip,),
        claims=MATRIX_UNITS[chip],
    )


def per_chip() -> list[AotCase]:
    found = []
    for chip in CHIPS:
        few, *_, many = (tiles for _, tiles in tiling.DECODE[chip])
        found += [decode(chip, tiles, "int4") for _, tiles in tiling.DECODE[chip]]
        found += [
            decode(chip, few, "int4", zeros=True, splits=True),
            decode(chip, few, "int8", columns=0),
            decode(chip, many, "int8", columns=0),
            decode(chip, many, "fp8"),
        ]
        found += [scaled(chip, tiles, "int8", columns=0) for _, tiles in tiling.SCALED[chip]]
        if chip == "sm_90":
            found += [scaled(chip, t, "fp8", columns=128) for _, t in tiling.SCALED[chip]]
        else:
            found += [scaled(chip, t, "bytes", columns=128) for _, t in tiling.SCALED_BYTES[chip]]
        found += [grouped(chip, tiles) for _, tiles in tiling.GROUPED[chip]]
        found += [grouped(chip, tiling.GROUPED[chip][-1][1], turned=True)]
        found += [grouped_weight(chip, tiles) for _, tiles in tiling.GROUPED_WEIGHT[chip]]
    return found


def routing(num_experts: int, top_k: int) -> list[AotCase]:
    tile, experts = route_tile(num_experts), tiling.power_of_two(num_experts, 16)
    ids = ("experts_ptr", "counts_ptr", "totals_ptr", "tokens_ptr", "places_ptr", "offsets_ptr")
    sizes = {"num_tokens": "i32", "num_experts": "i32"}
    tiles = {"TOP_K": top_k, "TILE_TOKENS": tile, "TILE_EXPERTS": experts}
    logits = {"logits_ptr": "*fp32", "stride_logits_token": "i32", "bias_ptr": "*fp32"}
    chosen = {"experts_ptr": "*i32", "weights_ptr": "*fp32", "counts_ptr": "*i32"}
    choice = {"IS_SOFTMAX": True, "NORMALIZE": True, "TILE_K": tiling.power_of_two(top_k)}
    of = f"{num_experts}-top{top_k}"
    return [
        AotCase(
            name=f"route-choose-{of}",
            kernel=f"{ROUTE}:_choose_kernel",
            signature={**logits, **chosen, **sizes, "scale": "fp32"},
            constexprs={**tiles, **choice},
            aligned=(*logits, *chosen),
        ),
        AotCase(
            name=f"route-place-{of}",
            kernel=f"{ROUTE}:_place_kernel",
            signature={**dict.fromkeys(ids, "*i32"), **sizes},
            constexprs=tiles,
            aligned=ids,
        ),
    ]


MOVES = [
    AotCase(
        name=f"moe-{kind}",
        kernel=f"blocks.ops._triton.moe:_{kind}_kernel",
        signature={
            first: "*bf16",
            "weights_ptr": "*fp32",
            "places_ptr": "*i32",
            second: "*bf16",
            "hidden_size": "i32",
        },
        constexprs={"TOP_K": 8, "TILE": TILE},
        aligned=(first, "weights_ptr", "places_ptr", second, "hidden_size"),
    )
    for kind, first, second in (("spread", "x_ptr", "rows_ptr"), ("combine", "rows_ptr", "y_ptr"))
]

OTHERS = [
    AotCase(
        name="route-scan",
        kernel=f"{ROUTE}:_scan_kernel",
        signature={
            "counts_ptr": "*i32",
            "totals_ptr": "*i32",
            "num_tiles": "i32",
            "num_experts": "i32",
        },
        constexprs={"TILE": 128, "TILE_EXPERTS": 8},
        aligned=("counts_ptr", "totals_ptr", "num_experts"),
    ),
    AotCase(
        name="quant-sum-splits",
        kernel=f"{QUANT}:_sum_splits_kernel",
        signature={
            "parts_ptr": "*fp32",
            "y_ptr": "*bf16",
            "num_elements": "i32",
            "num_splits": "i32",
        },
        constexprs={"TILE": SUM_TILE},
        aligned=("parts_ptr", "y_ptr", "num_elements"),
    ),
    *(
        AotCase(
            name=f"quantize-rows-{'int8' if is_int8 else 'fp8'}-{tile}",
            kernel="blocks.ops._triton.quantize_rows:_quantize_rows_kernel",
            signature={
                "x_ptr": "*bf16",
                "stride_x_row": "i32",
                "values_ptr": "*i8" if is_int8 else "*u8",
                "scales_ptr": "*fp32",
                "num_columns": "i32",
                "num_groups": "i32",
                "group_size": "i32",
            },
            constexprs={"IS_INT8": is_int8, "TILE": tile},
            aligned=("x_ptr", "stride_x_row", "values_ptr", "num_columns", "group_size"),
        )
        for is_int8, tile in ((True, 4096), (False, 128))
    ),
]

MATRIX_CASES = [*per_chip(), *routing(128, 8), *routing(8, 2), *MOVES, *OTHERS]
