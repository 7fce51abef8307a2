"""Optimizers and their parameter groups.

Matrices inside the layers may go to Muon; embeddings, norms and biases always go to AdamW, and
only matrices decay.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from blocks.ops import AdamW
from recipes.train.config import TrainConfig
from recipes.train.holding import Holding


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal: every singular value of a matrix's update becomes about one.

    The update is scaled by ``0.2 * sqrt(max(rows, columns))`` so that its root mean square is that
    of AdamW and both share one learning rate.

    Args:
        params: matrices.
        lr: learning rate. momentum: Nesterov momentum. weight_decay: decoupled.
        holdings: which part of its matrix a parameter is, where it is one: the whole is gathered to
            be made orthogonal.
        joined: parameters that are the rows of one matrix, in order, and made orthogonal as that.

    Reference: Jordan et al. 2024, Muon (the quintic Newton-Schulz iteration); Liu et al. 2025,
    Muon is Scalable for LLM Training, section 2.2 (the scale).
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        holdings: Mapping[nn.Parameter, Holding] | None = None,
        joined: Sequence[Sequence[nn.Parameter]] = (),
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.holdings = dict(holdings or {})
        self._with = {first: (first, *rest) for first, *rest in joined}
        self._later = {parameter for _, *rest in joined for parameter in rest}

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "no closure is taken"
        for group in self.param_groups:
            for first in group["params"]:
                if first.grad is None or first in self._later:
                    continue
                pieces = self._with.get(first, (first,))
                wholes = [self._direction(piece, group["momentum"]) for piece in pieces]
                matrix = wholes[0] if len(wholes) == 1 else torch.cat(wholes)
                updates = orthogonalize(matrix).split([len(whole) for whole in wholes])
                scale = 0.2 * math.sqrt(max(matrix.shape))
                for piece, rows in zip(pieces, updates, strict=True):
                    update = self.holdings.get(piece, _ALL).of(rows)
                    piece.mul_(1 - group["lr"] * group["weight_decay"])
                    piece.add_(update.to(piece.dtype), alpha=-group["lr"] * scale)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient with momentum, of the whole matrix."""
        assert parameter.grad is not None, "all rows of a matrix have gradients, or none"
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        held = self.holdings.get(parameter, _ALL)
        return held.whole(parameter.grad.lerp(state["momentum"], momentum))


_ALL = Holding()


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with singular values moved to about one (0.7 to 1.2), in bfloat16."""
    x = matrix.to(torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        poly = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, poly, x, beta=3.4445)
    return x.mT if tall else x


def build_optimizers(
    parameters: Mapping[str, nn.Parameter],
    config: TrainConfig,
    holdings: Mapping[str, Holding] | None = None,
    joined: Sequence[Sequence[str]] = (),
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; every parameter is in exactly one group of one of them.

    Args:
        holdings: by name, of parameters that are parts.
        joined: names of parameters that are the rows of one matrix, in order.
    """
    groups = parameter_groups(parameters, config)
    rate, decay = config.learning_rate, config.weight_decay
    found: list[torch.optim.Optimizer] = []
    if groups["decayed"] or groups["plain"]:
        settings = (("decayed", decay), ("plain", 0.0))
        made = [{"params": groups[kind], "weight_decay": d} for kind, d in settings]
        found.append(AdamW(made, lr=rate, betas=(0.9, 0.95), eps=1e-10))
    if groups["matrices"]:
        parts = {parameters[name]: held for name, held in (holdings or {}).items()}
        rows = [[parameters[name] for name in names] for names in joined]
        matrices = groups["matrices"]
        found.append(Muon(matrices, lr=rate, weight_decay=decay, holdings=parts, joined=rows))
    return found


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig
) -> dict[str, list[nn.Parameter]]:
    """``matrices`` (Muon's; empty under AdamW), ``decayed`` and ``plain`` parameters."""
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "decayed": [], "plain": []}
    for name, parameter in parameters.items():
        if parameter.ndim < 2:
            groups["plain"].append(parameter)
        elif name.startswith("layers.") and config.optimizer == "muon":
            groups["matrices"].append(parameter)
        else:
            groups["decayed"].append(parameter)
    return groups


@torch.no_grad()
def clip(grads: list[Tensor], norm: float, limit: float) -> None:
    """Scale gradients so that their global norm, ``norm``, is at most ``limit``."""
    if norm > limit:
        torch._foreach_mul_(grads, limit / (norm + 1e-6))
