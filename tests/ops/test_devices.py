"""Tensors on two devices are refused; no native code is ever handed another device's pointer."""

import pytest
import torch

from blocks.ops import apply_rope, layer_norm, linear, rms_norm, sample

ROWS, WEIGHT = torch.ones(2, 8), torch.ones(8)
FAR = WEIGHT.to("meta")
HEADS, PLACES, TABLE = torch.ones(2, 1, 8), torch.tensor([0, 1]), torch.ones(4, 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rms_norm(ROWS, FAR),
        lambda: rms_norm(ROWS, WEIGHT, residual=ROWS.to("meta")),
        lambda: layer_norm(ROWS, FAR, WEIGHT),
        lambda: layer_norm(ROWS, WEIGHT, FAR),
        lambda: layer_norm(ROWS, WEIGHT, WEIGHT, residual=ROWS.to("meta")),
        lambda: linear(ROWS, ROWS.to("meta")),
        lambda: linear(ROWS, torch.ones(8, 8), FAR),
        lambda: apply_rope(HEADS, HEADS.to("meta"), PLACES, TABLE),
        lambda: apply_rope(HEADS, HEADS, PLACES.to("meta"), TABLE),
        lambda: apply_rope(HEADS, HEADS, PLACES, TABLE.to("meta")),
    ],
)
def test_mixed_devices_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"devices: expected all tensors on .* got .*meta"):
        call()


def test_parameters_without_contents_are_not_read() -> None:
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        sample(ROWS, temperature=torch.ones(2, device="meta"))
