"""Attention, and the three orders in which norms can stand around it and the MLP.

A layer takes and returns ``(x, residual)``: the running sum of the residual stream is
``x + residual``, added inside the next norm, so that sum and norm are one pass over memory.
``residual`` is None where ``x`` is the whole stream.
"""

import torch
from torch import Tensor, nn

from blocks import ops
from recipes.model.attend import Attend
from recipes.model.config import ModelConfig
from recipes.model.mlp import MLP, GatedMLP
from recipes.model.moe import MixtureMLP
from recipes.model.parts import Linear, make_norm


class Attention(nn.Module):
    """Query, key and value in one matrix, rotary positions, ``attend``, output projection."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_dim = config.head_dim
        width = config.num_heads * config.head_dim
        self.qkv = Linear(
            config.hidden_size, sum(self.heads) * config.head_dim, config.qkv_bias, dtype
        )
        self.out = Linear(width, config.hidden_size, config.out_bias, dtype)
        self.query_norm = make_norm(config, config.head_dim, dtype) if config.qk_norm else None
        self.key_norm = make_norm(config, config.head_dim, dtype) if config.qk_norm else None

    def forward(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor | None, attend: Attend
    ) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        query, key, value = heads.split(self.heads, dim=1)  # [num_tokens, heads, head_dim] each
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if cos_sin is not None:
            in_place = not torch.is_grad_enabled()
            query, key = ops.apply_rope(query, key, positions, cos_sin, inplace=in_place)
        return self.out(attend(self.layer, query, key, value).flatten(1))


def make_mlp(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """The family's feed-forward part."""
    if config.num_experts:
        return MixtureMLP(config, dtype)
    return GatedMLP(config, dtype) if config.gated_mlp else MLP(config, dtype)


class PreNormLayer(nn.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))``."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.hidden_size, dtype)
        self.attention = Attention(config, layer, dtype)
        self.mlp_norm = make_norm(config, config.hidden_size, dtype)
        self.mlp = make_mlp(config, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        cos_sin: Tensor | None,
        attend: Attend,
    ) -> tuple[Tensor, Tensor | None]:
        if residual is None:
            x, residual = self.attention_norm(x), x
        else:
            x, residual = self.attention_norm(x, residual)
        x = self.attention(x, positions, cos_sin, attend)
        x, residual = self.mlp_norm(x, residual)
        return self.mlp(x), residual


class SandwichLayer(nn.Module):
    """``x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`` (Gemma-2)."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.hidden_size, dtype)
        self.attention = Attention(config, layer, dtype)
        self.attention_post_norm = make_norm(config, config.hidden_size, dtype)
        self.mlp_norm = make_norm(config, config.hidden_size, dtype)
        self.mlp = make_mlp(config, dtype)
        self.mlp_post_norm = make_norm(config, config.hidden_size, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        cos_sin: Tensor | None,
        attend: Attend,
    ) -> tuple[Tensor, Tensor | None]:
        if residual is None:
            x, residual = self.attention_norm(x), x
        else:
            x, residual = self.attention_norm(x, residual)
        x = self.attention_post_norm(self.attention(x, positions, cos_sin, attend))
        x, residual = self.mlp_norm(x, residual)
        return self.mlp_post_norm(self.mlp(x)), residual


class PostNormLayer(nn.Module):
    """``x = norm(x + attention(x)); x = norm(x + mlp(x))`` (OPT-350m)."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = Attention(config, layer, dtype)
        self.attention_norm = make_norm(config, config.hidden_size, dtype)
        self.mlp = make_mlp(config, dtype)
        self.mlp_norm = make_norm(config, config.hidden_size, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        cos_sin: Tensor | None,
        attend: Attend,
    ) -> tuple[Tensor, Tensor | None]:
        assert residual is None, "a post-norm layer receives the whole stream"
        x, _ = self.attention_norm(self.attention(x, positions, cos_sin, attend), x)
        x, _ = self.mlp_norm(self.mlp(x), x)
        return x, None


LAYERS = {"pre": PreNormLayer, "sandwich": SandwichLayer, "post": PostNormLayer}
