"""Products with a weight in few bits, beside torch's bf16 product and its own eight-bit ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benches.cases_ops import normal
from benches.shapes import LLAMA_8B, LLAMA_200M, TINY, ModelShape
from blocks import ops
from tests.numerics import assert_close

MODELS = [TINY, LLAMA_200M, LLAMA_8B]
ROWS = [1, 8, 32]
MANY_ROWS = [128, 1024]
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"format": "int8"},
    "fp8": {"format": "fp8"},
    "fp8 blocks": {"format": "fp8", "group_size": (128, 128)},
    "int4": {"format": "int4"},
    "int4 zeros": {"format": "int4", "symmetric": False},
}


def eight_bit_peers(
    x: Tensor, weight: ops.QuantizedWeight, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """torch's own products of rounded rows, where they run: the rounding of x is left out."""
    if weight.scales.shape[1] > 1:
        return {}
    rows = ops.quantize_rows(x, format="int8" if weight.format == "int8" else "fp8")
    turned = weight.values.t()
    if weight.format == "int8":
        return {"_int_mm": lambda: torch._int_mm(rows.values, turned)}
    if device.type != "cuda":
        return {}
    of_x, of_weight = rows.scales, weight.scales.t().contiguous()
    return {
        "_scaled_mm": lambda: torch._scaled_mm(
            rows.values, turned, scale_a=of_x, scale_b=of_weight, out_dtype=torch.bfloat16
        )
    }


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("scheme", SCHEMES)
def bench_quant_linear(
    timed, device: torch.device, scheme: str, model: ModelShape, num_rows: int
) -> None:
    inputs, outputs = model.hidden_size, 2 * model.intermediate_size
    x, plain = normal(num_rows, inputs, device=device), normal(outputs, inputs, device=device)
    weight = ops.quantize_weight(plain, **SCHEMES[scheme])
    expected = ops.quant_linear(x, weight, impl="reference")
    assert_close(ops.quant_linear(x, weight), expected, slack=2)
    work = ops.quant_linear_work(num_rows, weight, 2)
    peers = {"linear": lambda: ops.linear(x, plain), "torch": lambda: F.linear(x, plain)}
    with torch.inference_mode():
        timed(
            lambda: ops.quant_linear(x, weight),
            work=work,
            peers=peers,
            scheme=scheme,
            model=model.name,
            num_rows=num_rows,
        )


@pytest.mark.parametrize("num_rows", MANY_ROWS)
@pytest.mark.parametrize("model", [TINY, LLAMA_200M], ids=lambda model: model.name)
@pytest.mark.parametrize("scheme", ["int8", "fp8", "fp8 blocks"])
def bench_quant_linear_with_rounded_input(
    timed, device: torch.device, scheme: str, model: ModelShape, num_rows: int
) -> None:
    inputs, outputs = model.hidden_size, 2 * model.intermediate_size
    x, plain = normal(num_rows, inputs, device=device), normal(outputs, inputs, device=device)
    weight = ops.quantize_weight(plain, **SCHEMES[scheme])

    def call(impl: Any = None) -> Tensor:
        return ops.quant_linear(x, weight, quantize_input=True, impl=impl)

    assert_close(call(), call("reference"), slack=2)
    work = ops.quant_linear_work(num_rows, weight, 2)
    peers = {"torch": lambda: F.linear(x, plain), **eight_bit_peers(x, weight, device)}
    with torch.inference_mode():
        timed(call, work=work, peers=peers, scheme=scheme, model=model.name, num_rows=num_rows)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def bench_quantize_rows(timed, device: torch.device, format: Any) -> None:
    num_rows = 8192 if device.type == "cuda" else 256
    x = normal(num_rows, LLAMA_8B.hidden_size, device=device)
    expected = ops.quantize_rows(x, format=format, impl="reference").dequantize()
    assert_close(ops.quantize_rows(x, format=format).dequantize(), expected, slack=2)
    work = ops.quantize_rows_work(num_rows, LLAMA_8B.hidden_size, 2)
    timed(lambda: ops.quantize_rows(x, format=format), work=work, format=format)
