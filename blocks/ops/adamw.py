"""AdamW over all tensors of a group in one launch, and the optimizer around it."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._adamw_update import Settings, Step, clip_factor, update

HAS = ("reference", "torch", "triton")


@_checks.expects_tensors
@torch.no_grad()
def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: Step,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    max_norm: float | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    impl: Impl | None = None,
) -> Tensor | None:
    """One AdamW step over many tensors; parameters and moments change in place, gradients do not.

    Decay is decoupled: ``p -= lr * weight_decay * p`` comes first. Arithmetic is fp32 (fp64 for
    fp64 tensors), stored in each tensor's dtype. On an accelerator it is one launch, plus two with
    ``max_norm``; nothing waits for the device, so a step can be captured in a graph once it has run
    with the same tensors. On a CPU the default is torch's own ``_fused_adamw_``, bit for bit, where
    all four tensors share dtype and layout. Bits do not depend on the run.

    Args:
        params, exp_avgs, exp_avg_sqs: written. Parameters share one dtype, so do gradients, and so
            do moments (fp32 or narrower; fp64 not with Triton). A layout with gaps costs a copy.
        grads: of the parameters' shapes.
        step: number of this step, from 1: an int, a float32 scalar on the device, or one for
            each parameter.
        lr: learning rate; a float32 scalar on the device may change between replays of a graph.
        betas: decay of the two moments, each in [0, 1). eps: added to the root.
        max_norm: scale gradients so that their global norm is at most this. A norm that is not
            finite changes nothing.
        grad_scale: scalar the gradients were multiplied by, float32, on the device.
        found_inf: scalar; not zero means: change nothing.
        impl: None for the fastest where the tensors live.

    Returns:
        With ``max_norm`` the global norm before clipping, a scalar on the device; else None.

    Raises:
        ValueError, TypeError: lists or shapes that disagree, mixed dtypes or devices, settings out
            of range, a parameter that overlaps itself.

    >>> import torch
    >>> p, m, v = torch.ones(2), torch.zeros(2), torch.zeros(2)
    >>> adamw_step([p], [torch.tensor([1.0, -1.0])], [m], [v], step=1, lr=0.1, weight_decay=0.0)
    >>> p
    tensor([0.9000, 1.1000])

    Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
    """
    settings = Settings(lr, betas, eps, weight_decay)
    lists = (params, grads, exp_avgs, exp_avg_sqs)
    _check(lists, step, settings, max_norm)
    for name, number in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        _check_scalar(name, number)
    if not params:
        return None
    chosen = choose_impl(impl, HAS, params[0])
    if chosen == "reference":
        return reference.adamw_step(
            *lists,
            step=step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            max_norm=max_norm,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )
    clip = clip_factor(grads, max_norm, grad_scale, found_inf, chosen)
    update(lists, step, settings, clip.factor, chosen)
    return clip.norm


def adamw_work(
    num_elements: int, *, param_bytes: int = 4, grad_bytes: int = 4, state_bytes: int = 4
) -> Work:
    """Work of ``adamw_step``: gradients read, parameters and two moments read and written."""
    return Work(14 * num_elements, num_elements * (2 * param_bytes + grad_bytes + 4 * state_bytes))


class AdamW(torch.optim.Optimizer):
    """AdamW whose step is ``adamw_step``; ``torch.optim.AdamW`` in all else.

    Arguments, defaults and state are torch's: ``state_dict`` of either loads into the other. Three
    settings are its own; they are not part of the state.

    Args:
        params: tensors or groups. lr: a float, or a scalar tensor on the device.
        betas, eps, weight_decay: see ``adamw_step``.
        max_norm: clip by the global norm over all groups, inside the step; ``grad_norm`` then
            holds the last norm, and a step whose norm is not finite changes nothing.
        state_dtype: of the moments; None takes the parameter's.
        impl: see ``adamw_step``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_norm: float | None = None,
        state_dtype: torch.dtype | None = None,
        impl: Impl | None = None,
    ) -> None:
        _check_settings(Settings(lr, betas, eps, weight_decay), max_norm)
        ok = impl in (None, *HAS[1:])
        _checks.check(ok, "impl", f"one of {list(HAS[1:])} or None", repr(impl))
        ok = state_dtype is None or state_dtype.is_floating_point
        _checks.check(ok, "state_dtype", "a floating point dtype or None", state_dtype)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, **_FIXED})
        self.max_norm, self.state_dtype, self.impl = max_norm, state_dtype, impl
        self.grad_norm: Tensor | None = None
        self._step_supports_amp_scaling = True  # GradScaler leaves grad_scale and found_inf here

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every parameter that has a gradient; returns what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(group, self._lists(group)) for group in self.param_groups]
        groups = [(group, lists) for group, lists in groups if lists[0]]
        if not groups:
            return loss
        impl = choose_impl(self.impl, HAS[1:], groups[0][1][0][0])
        grads = [grad for _, lists in groups for grad in lists[1]]
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        self.grad_norm, factor = clip_factor(grads, self.max_norm, scale, found_inf, impl)
        for group, (*lists, steps) in groups:
            taken = 1 if factor is None else factor.isfinite().float()
            torch._foreach_add_(steps, taken)
            settings = Settings(group["lr"], group["betas"], group["eps"], group["weight_decay"])
            for alike in _by_dtype(lists, steps):
                update(tuple(alike[:4]), alike[4], settings, factor, impl)
        return loss

    def _lists(self, group: dict[str, Any]) -> tuple[list[Tensor], ...]:
        """Parameters with a gradient, their gradients, moments and steps."""
        for name, value in _FIXED.items():
            if name in _REFUSED and group[name]:
                raise _checks.fail(name, value, group[name], "use torch.optim.AdamW for it")
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            _checks.check(not p.grad.is_sparse, "gradients", "dense ones", "a sparse one")
        for p in params:
            if not self.state[p]:
                like = {"memory_format": torch.preserve_format, "dtype": self.state_dtype}
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, **like),
                    "exp_avg_sq": torch.zeros_like(p, **like),
                }
        states = [self.state[p] for p in params]
        names = ("exp_avg", "exp_avg_sq", "step")
        return params, [p.grad for p in params], *([s[name] for s in states] for name in names)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; moments keep ``state_dtype`` and are never rounded on the way."""
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved, p in zip(ids, params, strict=True):
            for name, value in state_dict["state"].get(saved, {}).items():
                dtype = torch.float32 if name == "step" else self.state_dtype or p.dtype
                made = torch.as_tensor(value).to(p.device, dtype, copy=True)
                self.state[p][name] = made


_REFUSED = ("amsgrad", "maximize", "differentiable")
_FIXED = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": True,
    "decoupled_weight_decay": True,
}
"""The rest of torch.optim.AdamW's settings, so that a state of one is a state of the other."""


def _check(
    lists: tuple[Sequence[Tensor], ...], step: Step, settings: Settings, max_norm: float | None
) -> None:
    params = lists[0]
    _check_settings(settings, max_norm)
    _check_scalar("step", step)
    if isinstance(step, int | float):
        ok = step >= 1 and int(step) == step
        _checks.check(ok, "step", "a whole number from 1", step)
    elif not isinstance(step, Tensor):
        _checks.check(len(step) == len(params), "step", f"{len(params)} scalars", len(step))
    for name, one in zip(("grads", "exp_avgs", "exp_avg_sqs"), lists[1:], strict=True):
        _checks.check(len(one) == len(params), name, f"{len(params)} tensors", len(one))
        for i, (tensor, param) in enumerate(zip(one, params, strict=True)):
            for what, is_it in ((f"{name}[{i}]", tensor), (f"params[{i}]", param)):
                if not isinstance(is_it, Tensor):
                    raise TypeError(f"{what}: expected a tensor, got {type(is_it).__name__}")
            _checks.check_shape(f"{name}[{i}]", tensor, tuple(param.shape), "as its parameter")
    for name, one in zip(("params", "grads", "moments"), (*lists[:2], [*lists[2], *lists[3]])):  # noqa: B905
        for i, tensor in enumerate(one):
            _checks.check_kind(f"{name}[{i}]", tensor, "floating point")
            _checks.check_dtype(f"{name}[{i}]", tensor, (one[0].dtype,), "one dtype a call")
            _checks.check_same_device(**{"params[0]": params[0], f"{name}[{i}]": tensor})
    for i, param in enumerate(params):
        ok = all(s > 0 or n < 2 for s, n in zip(param.stride(), param.shape, strict=True))
        _checks.check(ok, f"params[{i}]", "memory of its own", "an expanded view")


def _check_scalar(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        _checks.check(value.numel() == 1, name, "one number", f"shape {list(value.shape)}")


def _check_settings(settings: Settings, max_norm: float | None) -> None:
    _check_scalar("lr", settings.lr)
    ok = not isinstance(settings.lr, float | int) or settings.lr >= 0
    _checks.check(ok, "lr", "a number of at least 0", settings.lr)
    pair = isinstance(settings.betas, tuple | list) and len(settings.betas) == 2
    _checks.check(pair, "betas", "two numbers in [0, 1)", settings.betas)
    for beta in settings.betas:
        _checks.check(0 <= beta < 1, "betas", "numbers in [0, 1)", settings.betas)
    _checks.check(settings.eps >= 0, "eps", "a number of at least 0", settings.eps)
    ok = settings.weight_decay >= 0
    _checks.check(ok, "weight_decay", "a number of at least 0", settings.weight_decay)
    _checks.check_positive("max_norm", max_norm, "pass None for no clipping")


def _by_dtype(lists: Sequence[list[Tensor]], steps: list[Tensor]) -> list[list[list[Tensor]]]:
    """The lists, once for each device and combination of dtypes among them."""
    groups: dict[Any, list[list[Tensor]]] = {}
    for row in zip(*lists, steps, strict=True):
        key = (row[0].device, *(t.dtype for t in row))
        for column, tensor in zip(groups.setdefault(key, [[], [], [], [], []]), row, strict=True):
            column.append(tensor)
    return list(groups.values())
