"""What the trainer's speed is compared with: the same model in other hands.

``PlainTrainer`` is a training step in plain PyTorch, as nanoGPT writes it: standard torch only,
``F.scaled_dot_product_attention``, ``nn.RMSNorm``, ``F.cross_entropy`` over whole logits, autocast
to bfloat16, fused AdamW. ``BareLoop`` is the trainer's own model and optimizers with nothing around
them: forward, backward, clip, update.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.pipeline import SliceContext
from recipes.train import TrainConfig
from recipes.train.trainer import Trainer


class PlainLayer(nn.Module):
    """Pre-norm attention with rotary positions and grouped keys, then SwiGLU."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.hidden_size // config.num_heads
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, sum(self.heads) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        heads = self.qkv(self.attention_norm(x)).view(rows, length, -1, self.head_dim)
        q, k, v = heads.transpose(1, 2).split(self.heads, dim=1)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class PlainModel(nn.Module):
    """The decoder of a ``TrainConfig``, with its loss."""

    def __init__(self, config: TrainConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=1e-5)
        head_dim = config.hidden_size // config.num_heads
        frequencies = 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.arange(config.context_len)[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(inputs)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.final_norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


class PlainTrainer:
    """``step(inputs, labels)``: forward, backward, clip, update."""

    def __init__(self, config: TrainConfig, vocab_size: int) -> None:
        torch.manual_seed(config.seed)
        self.config, self.model = config, PlainModel(config, vocab_size)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        rate = config.learning_rate
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)

    def step(self, inputs: Tensor, labels: Tensor) -> float:
        narrow = self.config.dtype == "bfloat16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = self.model(inputs, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.item()


class BareLoop:
    """``step(inputs, labels)`` on the stage and the optimizers of a trainer of one process."""

    def __init__(self, trainer: Trainer) -> None:
        self.config, self.optimizers = trainer.config, trainer.optimizers
        (self.stage,) = trainer.replica.stages.values()
        self.parameters = list(trainer.replica.parameters.values())

    def step(self, inputs: Tensor, labels: Tensor) -> float:
        data = {"inputs": inputs, "labels": labels}
        context = SliceContext(0, 0, 0, inputs.shape[1], data, {})
        loss = self.stage(context=context) / labels.numel()
        self.stage.zero_grad(set_to_none=True)
        loss.backward()
        embed, head = self.stage.embed, self.stage.head
        assert embed is not None, "one stage has the whole model"
        assert head is not None, "one stage has the whole model"
        assert embed.weight.grad is not None, "backward has run"
        assert head.weight.grad is not None, "backward has run"
        embed.weight.grad += head.weight.grad
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)
