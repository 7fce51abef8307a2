"""The operations of ``blocks.ops`` inside a transformers Llama, and out again.

A patched module keeps its parameters, hooks and buffers and changes its class: to a subclass whose
``forward`` calls the fused operation. So ``isinstance``, gradient checkpointing, ``state_dict``,
``save_pretrained`` and ``copy.deepcopy`` work as before, and undoing is one assignment a module.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from blocks import ops
from blocks._checks import check, fail

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the families built of these modules."""
Model = TypeVar("Model", bound=PreTrainedModel)


def patch(model: Model) -> Model:
    """Put the operations of ``blocks.ops`` into a causal language model, in place.

    - every RMSNorm becomes ``rms_norm``, with the residual addition fused in where the layer has
      one before it;
    - queries and keys turn in ``apply_rope``, the gated activation is ``silu_and_mul``;
    - in training, a call with labels takes its loss from ``linear_cross_entropy``: the logits are
      never made, and ``logits`` of the output is None. In evaluation logits and loss are as before.

    Loss and gradients are those of the model as it was, up to rounding. Patching again changes
    nothing.

    Args:
        model: a ``...ForCausalLM`` of one of ``FAMILIES``.

    Returns:
        The same model.

    Raises:
        ValueError: another family, or a model without a language head.
    """
    kind = getattr(model.config, "model_type", None)
    check(kind in FAMILIES, "model", f"one of {', '.join(FAMILIES)}", repr(kind))
    head = getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear):
        raise fail("lm_head", "a torch.nn.Linear", type(head).__name__, "patch a ...ForCausalLM")
    for module in model.modules():
        forward = _forward_for(module, model)
        if forward is not None and not _is_patched(module):
            module.__class__ = _with_forward(type(module), forward)
    return model


def unpatch(model: Model) -> Model:
    """Give every patched module its own class back, in place."""
    for module in model.modules():
        if _is_patched(module):
            module.__class__ = vars(type(module))["patched_from"]
    return model


@contextlib.contextmanager
def patched(model: Model) -> Iterator[Model]:
    """``patch`` for the length of a ``with`` block."""
    try:
        yield patch(model)
    finally:
        unpatch(model)


def _forward_for(module: nn.Module, model: PreTrainedModel) -> Callable[..., Any] | None:
    """The forward a module gets, None where it keeps its own."""
    name = type(module).__name__
    if module is model:
        return _causal_lm
    if name.endswith("RMSNorm"):
        return _norm
    if name.endswith("DecoderLayer"):
        return _layer
    if name.endswith("Attention"):
        return _with_our_rope(type(module).forward)
    if name.endswith("MLP") and model.config.hidden_act == "silu":
        return _mlp
    return None


def _is_patched(module: nn.Module) -> bool:
    return "patched_from" in vars(type(module))


@functools.cache
def _with_forward(base: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """A subclass under the same name. Making it runs ``__init_subclass__`` of transformers' layers,
    which wraps its forward for gradient checkpointing like any other."""
    same = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**same, "forward": forward, "patched_from": base})


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    return ops.rms_norm(hidden_states, self.weight, eps=self.variance_epsilon)


def _mlp(self: Any, x: Tensor) -> Tensor:
    gate_up = torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1)
    return self.down_proj(ops.silu_and_mul(gate_up))


def _layer(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
    norm = self.post_attention_layernorm
    normed, residual = ops.rms_norm(
        attended, norm.weight, eps=norm.variance_epsilon, residual=hidden_states
    )
    return residual + self.mlp(normed)


@functools.cache
def _with_our_rope(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The attention's own forward, one name of which means something else.

    The families differ in windows and head norms; what they share is the call of this function.
    """
    name = "apply_rotary_pos_emb"
    found = isinstance(forward, types.FunctionType) and name in forward.__code__.co_names
    check(found, "attention", f"a forward that calls {name}", forward, "another transformers?")
    assert isinstance(forward, types.FunctionType)
    scope = {**forward.__globals__, name: _rotary}
    copied = types.FunctionType(
        forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    return functools.update_wrapper(copied, forward)


def _rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """transformers' signature: query and key [batch, heads, seq, dim], cos and sin [batch or 1,
    seq, dim] with both halves alike."""
    assert unsqueeze_dim == 1, f"expected heads before positions, got {unsqueeze_dim}"
    batch, _, length, head_dim = query.shape
    half = cos.shape[-1] // 2
    table = torch.cat((cos[..., :half], sin[..., :half]), dim=-1).float().flatten(0, 1)
    rows = torch.arange(len(table), device=query.device)
    positions = rows if len(table) == batch * length else rows.repeat(batch)
    turned = ops.apply_rope(
        query.transpose(1, 2).flatten(0, 1), key.transpose(1, 2).flatten(0, 1), positions, table
    )
    shaped = [x.view(batch, length, -1, head_dim).transpose(1, 2) for x in turned]
    return shaped[0], shaped[1]


@can_return_tuple
def _causal_lm(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    labels: Tensor | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | Tensor = 0,
    **kwargs: Any,
) -> Any:
    given = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "past_key_values": past_key_values,
        "inputs_embeds": inputs_embeds,
        "use_cache": use_cache,
    }
    all_kept = isinstance(logits_to_keep, int) and logits_to_keep == 0
    usual = all_kept and self.loss_function is ForCausalLMLoss
    if labels is None or not self.training or not usual:
        own = self.patched_from.forward  # also where another wrapper, as FSDP's, lies on top
        return own(self, **given, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
    of_loss = ("num_items_in_batch", "ignore_index", "shift_labels")
    loss_options = {name: kwargs[name] for name in of_loss if name in kwargs}
    outputs = self.model(**given, **{k: v for k, v in kwargs.items() if k not in loss_options})
    return CausalLMOutputWithPast(
        loss=_loss(outputs.last_hidden_state, self.lm_head, labels, **loss_options),
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _loss(
    hidden: Tensor,
    head: nn.Linear,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """transformers' causal loss: each position is asked for the next one's label."""
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    loss = ops.linear_cross_entropy(
        hidden.flatten(0, -2),
        head.weight,
        shift_labels.flatten().to(hidden.device),
        bias=head.bias,
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
