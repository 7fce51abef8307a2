"""``family``: models of twelve families, tiny and as published, with the inputs they take."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blocks._checks import check
from recipes.model import init_weights
from recipes.plan.families import hugging_face
from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.families.decoder_sizes import DECODERS, decoder_config
from recipes.plan.families.dlrm import DLRM, DLRMConfig
from recipes.plan.families.mlp import MLP, MLPConfig
from recipes.plan.families.static_moe import StaticMoE, StaticMoEConfig
from recipes.plan.families.unet import UNet, UNetConfig
from recipes.plan.families.wide_resnet import DEPTHS, WideResNet, WideResNetConfig

Draw = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Family:
    """A model of one size.

    name: ``llama:8b``.
    make: the module, on the default device; nothing is loaded.
    batch_size, seq_len: of an input unless asked otherwise; ``seq_len`` is the side of an image,
        and None where there is neither.
    """

    name: str
    make: Callable[[], nn.Module]
    batch_size: int
    seq_len: int | None
    _inputs: Callable[[int, Any, "_Draws"], dict[str, Tensor]]

    def inputs(
        self,
        batch_size: int | None = None,
        seq_len: int | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Tensor]:
        """Keyword arguments of the module.

        Args:
            generator: draws the numbers; None for tensors on the meta device, without any.
            dtype: of those that are not whole numbers.

        Raises:
            ValueError: a ``seq_len`` that the inputs do not have or the model does not take.
        """
        fits = seq_len is None or self.seq_len is not None
        check(fits, "seq_len", f"none: inputs of {self.name} have rows alone", seq_len)
        draws = _Draws(generator, dtype)
        return self._inputs(batch_size or self.batch_size, seq_len or self.seq_len, draws)


class _Draws:
    def __init__(self, generator: torch.Generator | None, dtype: torch.dtype) -> None:
        self._generator, self._dtype = generator, dtype

    def whole(self, high: int, *shape: int) -> Tensor:
        """Whole numbers from 1 to below ``high``: 0 often stands for padding."""
        if self._generator is None:
            return torch.empty(shape, dtype=torch.int64, device="meta")
        return torch.randint(min(1, high - 1), high, shape, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        if self._generator is None:
            return torch.empty(shape, dtype=self._dtype, device="meta")
        return torch.randn(shape, generator=self._generator, dtype=self._dtype)


def families() -> tuple[str, ...]:
    """Every ``family:size`` there is."""
    return tuple(f"{name}:{size}" for name, (sizes, _) in _FAMILIES.items() for size in sizes)


def family(name: str) -> Family:
    """A model by its family and size.

    >>> family("gpt2:tiny").inputs(2, 8)["input_ids"].shape
    torch.Size([2, 8])

    Args:
        name: one of ``families()``; a decoder may have any size, see ``decoder_config``.

    Raises:
        ValueError: there is none of that name.
    """
    kind, _, size = name.partition(":")
    if kind == "decoder":
        return _decoder(name, size)
    known = families()
    check(name in known, "family", f"one of {', '.join(known)}", repr(name))
    sizes, build = _FAMILIES[kind]
    return build(name, sizes[size])


def _language(class_name: str, **example: int) -> Callable[[str, Any], Family]:
    """Of transformers: tokens and labels to a loss."""

    def build(name: str, fields: Any) -> Family:
        def inputs(batch_size: int, seq_len: int, draws: _Draws) -> dict[str, Tensor]:
            tokens = draws.whole(fields["vocab_size"], batch_size, seq_len)
            return {"input_ids": tokens, "labels": tokens}

        tiny = name.endswith(":tiny")
        batch_size, seq_len = (4, 8) if tiny else (8, example["seq_len"])
        make = hugging_face.model(class_name, **fields)
        return Family(name, make, batch_size, seq_len, inputs)

    return build


def _decoder(name: str, size: str) -> Family:
    config = decoder_config(size)

    def inputs(batch_size: int, seq_len: int, draws: _Draws) -> dict[str, Tensor]:
        most = config.max_positions
        check(seq_len <= most, "seq_len", f"at most {most} tokens for {name}", seq_len)
        tokens, labels = (draws.whole(config.vocab_size, batch_size, seq_len) for _ in range(2))
        return {"inputs": tokens, "labels": labels}

    def make() -> nn.Module:
        made = TrainedDecoder(config)
        if not made.embed.weight.is_meta:
            init_weights(made)
        return made

    small = config.max_positions <= 64
    batch_size, seq_len = (4, 8) if small else (8, config.max_positions)
    return Family(name, make, batch_size, seq_len, inputs)


def _mlp(name: str, config: MLPConfig) -> Family:
    def inputs(batch_size: int, seq_len: None, draws: _Draws) -> dict[str, Tensor]:
        shape = (batch_size, config.hidden_size)
        return {"x": draws.normal(*shape), "target": draws.normal(*shape)}

    return Family(name, lambda: MLP(config), 8 if name.endswith(":tiny") else 1024, None, inputs)


def _wide_resnet(name: str, config: WideResNetConfig) -> Family:
    def inputs(batch_size: int, side: int, draws: _Draws) -> dict[str, Tensor]:
        images = draws.normal(batch_size, 3, side, side)
        return {"images": images, "labels": draws.whole(config.num_classes, batch_size)}

    batch_size, side = (4, 32) if name.endswith(":tiny") else (32, 224)
    return Family(name, lambda: WideResNet(config), batch_size, side, inputs)


def _unet(name: str, config: UNetConfig) -> Family:
    def inputs(batch_size: int, side: int, draws: _Draws) -> dict[str, Tensor]:
        shape = (batch_size, config.in_channels, side, side)
        return {"images": draws.normal(*shape), "target": draws.normal(*shape)}

    batch_size, side = (4, 16) if name.endswith(":tiny") else (16, 256)
    return Family(name, lambda: UNet(config), batch_size, side, inputs)


def _dlrm(name: str, config: DLRMConfig) -> Family:
    def inputs(batch_size: int, seq_len: None, draws: _Draws) -> dict[str, Tensor]:
        return {
            "dense": draws.normal(batch_size, config.num_dense),
            "rows": draws.whole(min(config.table_rows), batch_size, len(config.table_rows)),
            "labels": draws.normal(batch_size),
        }

    return Family(name, lambda: DLRM(config), 8 if name.endswith(":tiny") else 2048, None, inputs)


def _static_moe(name: str, config: StaticMoEConfig) -> Family:
    def inputs(batch_size: int, seq_len: int, draws: _Draws) -> dict[str, Tensor]:
        tokens = draws.whole(config.vocab_size, batch_size, seq_len)
        return {"tokens": tokens, "labels": tokens}

    batch_size, seq_len = (4, 8) if name.endswith(":tiny") else (16, 1024)
    return Family(name, lambda: StaticMoE(config), batch_size, seq_len, inputs)


_WIDE_RESNETS = {
    "tiny": WideResNetConfig((3, 1), 8, 2, 12),
    **{
        name: WideResNetConfig(DEPTHS[50], channels)
        for name, channels in (
            ("250m", 160), ("500m", 224), ("1b", 320), ("2b", 448), ("4b", 640),
        )
    },
    "6.8b": WideResNetConfig(DEPTHS[50], 320, 16),
    "13b": WideResNetConfig(DEPTHS[101], 320, 16),
}  # fmt: skip
_STATIC_MOES = {
    "tiny": StaticMoEConfig(16, 4, 4, 4, 4, 64, 8, 1.0),
    "380m": StaticMoEConfig(768, 8, 16, 8),
    "690m": StaticMoEConfig(768, 8, 16, 16),
    "1.3b": StaticMoEConfig(768, 16, 16, 16),
    "2.4b": StaticMoEConfig(1024, 16, 16, 16),
    "10b": StaticMoEConfig(1536, 16, 16, 32),
    "27b": StaticMoEConfig(2048, 16, 16, 48),
    "70b": StaticMoEConfig(2048, 32, 16, 64),
}
_FAMILIES: Mapping[str, tuple[Mapping[str, Any], Callable[[str, Any], Family]]] = {
    "mlp": ({"tiny": MLPConfig(16, 4), "alpa": MLPConfig(1024, 12)}, _mlp),
    "llama": (hugging_face.LLAMA, _language("LlamaForCausalLM", seq_len=8192)),
    "gpt2": (hugging_face.GPT2, _language("GPT2LMHeadModel", seq_len=1024)),
    "bert": (hugging_face.BERT, _language("BertForMaskedLM", seq_len=512)),
    "mixtral": (hugging_face.MIXTRAL, _language("MixtralForCausalLM", seq_len=4096)),
    "static-moe": (_STATIC_MOES, _static_moe),
    "t5": (hugging_face.T5, _language("T5ForConditionalGeneration", seq_len=512)),
    "wide-resnet": (_WIDE_RESNETS, _wide_resnet),
    "unet": (
        {"tiny": UNetConfig((8, 16, 32), 3, 4), "base": UNetConfig((64, 128, 256, 512, 1024))},
        _unet,
    ),
    "dlrm": (
        {"tiny": DLRMConfig((48, 36, 24), 8, 5, (16,), (16,)), "base": DLRMConfig()},
        _dlrm,
    ),
    "mamba2": (hugging_face.MAMBA2, _language("Mamba2ForCausalLM", seq_len=2048)),
    "decoder": (DECODERS, _decoder),
}
