"""ModelConfig: everything that tells one decoder from another, as plain frozen data.

A family (``recipes.model.families``) turns a Hugging Face ``config.json`` into this record and
back. The decoder reads only this record and never asks which family it came from.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from blocks._checks import check, fail
from blocks.ops import RopeScaling

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24  # of any one dimension; a config beyond it is broken or hostile


class AttentionSpec(NamedTuple):
    """What an attention call of one layer needs besides its tensors.

    scale: factor on query-key products before the softmax.
    window: number of most recent positions a query sees, itself included; None for all.
    softcap: scores become ``softcap * tanh(score / softcap)``; None for no cap.
    """

    scale: float
    window: int | None
    softcap: float | None


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding over the whole of each head.

    theta: base of the frequencies.
    scaling: how they are stretched to a context longer than that of the first training.
    """

    theta: float = 10000.0
    scaling: RopeScaling | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. The defaults are those of a Llama.

    family: name of the Hugging Face ``model_type`` it is written back as.
    max_positions: longest context in tokens the model was made for.
    norm_order: ``pre`` normalises the input of attention and MLP; ``post`` what follows each
        residual sum (OPT-350m); ``sandwich`` input and output of both (Gemma-2).
    norm_offset: added to every norm weight (1.0 in Gemma, whose weights are stored around 0).
    gated_mlp: ``down(act(gate(x)) * up(x))``; otherwise ``down(act(up(x)))``.
    rope: None means learned positions.
    position_offset: rows skipped at the head of the learned position table (2 in OPT).
    query_scale: factor on query-key products; None for ``head_dim ** -0.5``.
    scale_by_layer: divides the scale of layer i by i + 1 (an option of GPT-2).
    windows: sliding window of each layer in tokens, None where a layer sees everything; empty
        means no layer has one.
    embedding_dim: width of the token embedding where a projection follows it (OPT-350m).
    num_experts: 0 for a dense MLP.
    eos_token_ids: any of them ends a generation.
    dtype: dtype the weights are kept in, by its torch name.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: Literal["rms", "layer"] = "rms"
    norm_order: Literal["pre", "post", "sandwich"] = "pre"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    final_norm: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = Rope()
    position_offset: int = 0
    query_scale: float | None = None
    scale_by_layer: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    embedding_scale: float | None = None
    embedding_dim: int | None = None
    tie_embeddings: bool = False
    num_experts: int = 0
    num_experts_per_token: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "max_positions"):
            size = getattr(self, name)
            check(0 < size <= MAX_SIZE, name, f"a size from 1 to {MAX_SIZE}", size)
        check(
            0 < self.num_layers <= MAX_LAYERS, "num_layers", f"1 to {MAX_LAYERS}", self.num_layers
        )
        check(
            self.num_heads % self.num_kv_heads == 0,
            "num_heads",
            f"a multiple of num_kv_heads ({self.num_kv_heads})",
            self.num_heads,
        )
        check(
            len(self.windows) in (0, self.num_layers),
            "windows",
            f"one entry per layer ({self.num_layers}) or none",
            len(self.windows),
        )
        for window in self.windows:
            check(window is None or window > 0, "window", "a positive number of tokens", window)
        if self.rope is not None and self.head_dim % 2:
            raise fail("head_dim", "an even number for rotary positions", self.head_dim)
        if not 0 <= self.num_experts_per_token <= self.num_experts <= MAX_LAYERS:
            raise fail(
                "num_experts_per_token",
                f"0 to num_experts ({self.num_experts})",
                self.num_experts_per_token,
            )

    def attention(self, layer: int) -> AttentionSpec:
        """Scale, window and softcap of one layer's attention."""
        scale = self.head_dim**-0.5 if self.query_scale is None else self.query_scale
        if self.scale_by_layer:
            scale /= layer + 1
        window = self.windows[layer] if self.windows else None
        return AttentionSpec(scale, window, self.attention_softcap)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of keys and values one token occupies over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize

    @staticmethod
    def from_hf(
        raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> "ModelConfig":
        """Read a Hugging Face ``config.json`` of transformers 4 or 5.

        Args:
            raw: the parsed file.
            generation: the parsed ``generation_config.json``; its end-of-sequence ids win.

        Raises:
            ValueError: unknown family, missing key, or a value out of range.
        """
        from recipes.model import families

        return families.read_config(raw, generation)

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` of this model, readable by transformers 4 and 5."""
        from recipes.model import families

        return families.write_config(self)
