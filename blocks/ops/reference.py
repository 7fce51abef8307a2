"""Eager twins of the operations of this block: dense, readable, the specification and the oracle.

Everything is computed in fp32 (fp64 for fp64) and rounded to the input's dtype at the end; the few
places where a model rounds earlier are said in the docstring of the public function. All but
``sample`` are differentiable.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from blocks.ops._noise import uniform_noise
from blocks.ops.quant import (
    LARGEST,
    SMALLEST_SCALE,
    QuantizedRows,
    QuantizedWeight,
    extent_of_groups,
    spread_groups,
)
from blocks.ops.routing import Routing, sort_by_expert
from blocks.ops.token_losses import TokenLosses


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None, weight_offset: float
) -> tuple[Tensor, Tensor]:
    """See ``norm.rms_norm``; always returns (output, sum of x and residual)."""
    total = x if residual is None else x + residual
    sums = wide(total)
    scaled = sums * torch.rsqrt(sums.square().mean(-1, keepdim=True) + eps)
    if weight_offset == 0.0:  # the Llama order: round, then multiply by the weight
        return (weight * scaled.to(x.dtype)).to(x.dtype), total
    return (scaled * (weight_offset + wide(weight))).to(x.dtype), total  # the Gemma order


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ``norm.layer_norm``; always returns (output, sum of x and residual)."""
    total = x if residual is None else x + residual
    sums = wide(total)
    centred = sums - sums.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    output = scaled * wide(weight)
    return (output if bias is None else output + wide(bias)).to(x.dtype), total


def apply_rope(
    query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor, *, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """See ``rope.apply_rope``; never in place."""
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [num_tokens, 1, rotary_dim / 2]
    return _rotate(query, cos, sin, interleaved), _rotate(key, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    rotary_dim = 2 * cos.shape[-1]
    rotary, rest = wide(x[..., :rotary_dim]), x[..., rotary_dim:]
    if interleaved:
        first, second = rotary[..., 0::2], rotary[..., 1::2]
    else:
        first, second = rotary.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    rotary = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat((rotary.to(x.dtype), rest), dim=-1)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See ``activation.silu_and_mul``."""
    gate, up = wide(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_and_mul(gate_up: Tensor, *, approximate: str) -> Tensor:
    """See ``activation.gelu_and_mul``."""
    gate, up = wide(gate_up).chunk(2, dim=-1)
    return (F.gelu(gate, approximate=approximate) * up).to(gate_up.dtype)


def gelu(x: Tensor, *, approximate: str) -> Tensor:
    """See ``activation.gelu``."""
    return F.gelu(wide(x), approximate=approximate).to(x.dtype)


def relu(x: Tensor) -> Tensor:
    """See ``activation.relu``."""
    return F.relu(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``linear.linear``."""
    output = wide(x) @ wide(weight).t()
    return (output if bias is None else output + wide(bias)).to(x.dtype)


def quantize_rows(x: Tensor, *, format: str, group_size: int | None) -> QuantizedRows:
    """See ``quantize_rows.quantize_rows``."""
    width = group_size or max(x.shape[1], 1)
    rows = x.detach().float()
    extent = extent_of_groups(rows.abs(), (1, width), "max") / LARGEST[format]
    scales = extent.clamp_min(SMALLEST_SCALE)
    scaled = rows / spread_groups(scales, (1, width), rows.shape)
    if format == "fp8":
        values = scaled.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    else:
        values = scaled.round().clamp(-127, 127).to(torch.int8)
    return QuantizedRows(values, scales, width)


def quant_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, quantize_input: bool
) -> Tensor:
    """See ``quant_linear.quant_linear``."""
    if not quantize_input:
        return linear(x, weight.dequantize(), bias)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    format = "int8" if weight.format == "int8" else "fp8"
    group = None if weight.scales.shape[1] <= 1 else weight.group[1]
    rounded = quantize_rows(rows, format=format, group_size=group)
    y = linear(rounded.dequantize(), weight.dequantize(), bias)
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """See ``grouped_linear.grouped_linear``."""
    bounds = offsets.tolist()
    parts = [
        wide(x[begin:end]) @ wide(matrix).t()
        for matrix, begin, end in zip(weight, bounds[:-1], bounds[1:], strict=True)
    ]
    outside = wide(x.new_zeros(len(x) - bounds[-1], weight.shape[1]))
    return torch.cat((*parts, outside)).to(x.dtype)


def route(
    router_logits: Tensor,
    top_k: int,
    *,
    scoring: str,
    normalize: bool,
    bias: Tensor | None,
    scale: float,
) -> Routing:
    """See ``route.route``."""
    scores = router_scores(router_logits, scoring)
    preference = scores.detach() if bias is None else scores.detach() + bias.detach()
    ordered = preference.nan_to_num(nan=-torch.inf).sort(dim=-1, descending=True, stable=True)
    experts = ordered.indices[:, :top_k].to(torch.int32)
    weights = router_weights(scores, experts, normalize=normalize, scale=scale)
    return Routing(experts, weights, *sort_by_expert(experts, router_logits.shape[1]))


def router_scores(logits: Tensor, scoring: str) -> Tensor:
    """Scores of all experts in fp32: a softmax over them, or a sigmoid of each."""
    return wide(logits).softmax(-1) if scoring == "softmax" else wide(logits).sigmoid()


def router_weights(scores: Tensor, experts: Tensor, *, normalize: bool, scale: float) -> Tensor:
    """Scores of the chosen experts as weights [num_tokens, top_k]."""
    weights = scores.gather(1, experts.long())
    return scale * (weights / weights.sum(-1, keepdim=True) if normalize else weights)


def moe(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    routing: Routing,
    *,
    activation: str,
) -> Tensor:
    """See ``moe.moe``: every expert over every token, weighted by 0 where it was not chosen."""
    total = torch.zeros_like(wide(x))
    for expert in range(len(gate_up)):
        gate, up = (wide(x) @ wide(gate_up[expert]).t()).to(x.dtype).chunk(2, dim=-1)
        if activation == "silu":
            inner = F.silu(wide(gate)) * wide(up)
        else:
            formula = "none" if activation == "gelu" else "tanh"
            inner = F.gelu(wide(gate), approximate=formula) * wide(up)
        y = (wide(inner.to(x.dtype)) @ wide(down[expert]).t()).to(x.dtype)
        share = torch.where(routing.experts == expert, routing.weights, 0).sum(-1)  # [num_tokens]
        total = total + share[:, None] * wide(y)
    return total.to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """In the precision computed in: fp32, and fp64 for fp64."""
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    return_lse: bool = False,
):
    """See ``cross_entropy.cross_entropy``."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    counts = labels != ignore_index
    inside = counts & (labels >= 0) & (labels < x.shape[1])
    x = torch.where(inside[:, None], x, 0)  # other rows may hold anything
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    lse = x.logsumexp(-1)
    target = x.gather(1, torch.where(inside, labels, 0)[:, None])[:, 0]
    losses = lse - (1 - label_smoothing) * target - label_smoothing * x.mean(-1)
    losses = torch.where(inside, losses + z_loss * lse.square(), 0)
    losses = losses.masked_fill(counts & ~inside, torch.nan)
    if reduction == "none":
        loss = losses
    else:
        loss = losses.sum() / (counts.sum() if reduction == "mean" else 1)
    lse = torch.where(inside, lse, 0).masked_fill(counts & ~inside, torch.nan)
    return TokenLosses(loss, losses.detach(), lse.detach()) if return_lse else loss


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    return_lse: bool = False,
):
    """See ``linear_cross_entropy.linear_cross_entropy``; the logits exist whole, in fp32."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    hidden = torch.where((labels != ignore_index)[:, None], hidden, 0)  # others hold anything
    logits = hidden.to(wide) @ weight.to(wide).t()
    return cross_entropy(
        logits if bias is None else logits + bias.to(wide),
        labels,
        ignore_index=ignore_index,
        reduction=reduction,
        softcap=softcap,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        return_lse=return_lse,
    )


def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int | Tensor | Sequence[Tensor],
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    max_norm: float | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Tensor | None:
    """See ``adamw.adamw_step``."""
    norm, factor = None, torch.ones(()) if grad_scale is None else grad_scale.float().reciprocal()
    if max_norm is not None:
        squares = [grad.float().square().sum() for grad in grads]
        norm, factor = clip_by_norm(torch.stack(squares).sum().sqrt(), max_norm, grad_scale)
    if not factor.isfinite() or (found_inf is not None and found_inf != 0):
        return norm
    steps = step if isinstance(step, Sequence) else [step] * len(params)
    for p, g, m, v, t in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        param, grad, mean, square = (x.to(wide) for x in (p, g, m, v))
        grad = grad * factor
        mean = mean + (1 - betas[0]) * (grad - mean)
        square = square + (1 - betas[1]) * (grad.square() - square)
        size = (square / (1 - betas[1] ** float(t))).sqrt() + eps
        param = param - lr * weight_decay * param
        p.copy_(param - lr / (1 - betas[0] ** float(t)) * mean / size)
        m.copy_(mean)
        v.copy_(square)
    return norm


def clip_by_norm(norm: Tensor, max_norm: float, grad_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """A norm without the loss scale, and the factor that clips to it; NaN where not finite."""
    unscale = torch.ones_like(norm) if grad_scale is None else grad_scale.float().reciprocal()
    norm = norm * unscale
    factor = (max_norm / (norm + 1e-6)).clamp_max(1.0) * unscale
    return norm, torch.where(norm.isfinite(), factor, torch.nan)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """See ``sampling.sample``; all parameters are tensors of one number a row."""
    x = logits.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    weights = torch.where(
        kept_tokens(x, temperature, top_k, top_p, min_p), token_weights(x, temperature), 0
    )
    token_ids = torch.arange(x.shape[1], device=x.device)
    noise = uniform_noise(seeds[:, None], positions[:, None], token_ids)
    race = weights / -torch.log1p(-noise.double()).float()
    drawn = torch.where(temperature == 0, x.argmax(-1), race.argmax(-1))
    return torch.where(x.amax(-1) == -torch.inf, -1, drawn)


def top_logprobs(
    logits: Tensor, token_ids: Tensor, num_top: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``logprobs.top_logprobs``; the lowest id first among equals."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, token_ids[:, None].long())
    rank = (logits > logits.gather(1, token_ids[:, None].long())).sum(-1)
    top, top_ids = logprobs.sort(dim=-1, descending=True, stable=True)
    return chosen[:, 0], rank, top[:, :num_top], top_ids[:, :num_top]


def apply_penalties(
    logits: Tensor,
    rows: Tensor,
    token_ids: Tensor,
    output_counts: Tensor,
    *,
    repetition: Tensor | float = 1.0,
    presence: Tensor | float = 0.0,
    frequency: Tensor | float = 0.0,
) -> Tensor:
    """See ``penalties.apply_penalties``: one entry after the other."""
    entries = zip(rows.tolist(), token_ids.tolist(), output_counts.tolist(), strict=True)
    settings = [
        torch.as_tensor(value, dtype=torch.float32).expand(logits.shape[0])
        for value in (repetition, presence, frequency)
    ]
    for row, token, count in entries:
        repeated, present, frequent = (setting[row] for setting in settings)
        x = logits[row, token].float()
        x = x / repeated if x > 0 else x * repeated
        if count > 0:
            x = x - (present + frequent * count)
        logits[row, token] = x.to(logits.dtype)
    return logits


def add_logit_bias(logits: Tensor, rows: Tensor, token_ids: Tensor, bias: Tensor) -> Tensor:
    """See ``penalties.add_logit_bias``: one entry after the other."""
    for row, token, value in zip(rows.tolist(), token_ids.tolist(), bias, strict=True):
        logits[row, token] = (logits[row, token].float() + value).to(logits.dtype)
    return logits


def token_weights(x: Tensor, temperature: Tensor) -> Tensor:
    """Probabilities before truncation, scaled so that the likeliest token has weight 1."""
    top = x.amax(-1, keepdim=True)
    below = torch.where(x == top, 0, x - top)  # also where the top is infinite
    return torch.exp(below / torch.where(temperature > 0, temperature, 1)[:, None])


def kept_tokens(
    x: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """Which tokens survive top-k, then top-p over what is left, then min-p: a boolean like x.

    Every rule keeps a token together with all tokens of the same logit.
    """
    vocab = x.shape[1]
    weights = token_weights(x, temperature)
    ordered, order = x.sort(dim=-1, descending=True)
    ordered_weights = weights.gather(1, order).double()

    last = torch.where((top_k == 0) | (top_k > vocab), vocab, top_k) - 1
    in_top_k = ordered >= ordered.gather(1, last[:, None])
    mass = torch.where(in_top_k, ordered_weights, 0).cumsum(-1)
    wanted = torch.where(top_p < 1, top_p.double() * mass[:, -1], torch.inf)
    in_top_p = in_top_k & (mass - torch.where(in_top_k, ordered_weights, 0) < wanted[:, None])
    threshold = torch.where(in_top_p, ordered, torch.inf).amin(-1, keepdim=True)
    return (x >= threshold) & (weights >= min_p[:, None])
