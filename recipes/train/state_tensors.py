"""``StateTensors``: what of parameters and optimizers is kept, by name, and how it comes back."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from blocks._checks import check
from recipes.train.holding import Holding

_ALL = Holding()


class StateTensors:
    """Parameters as ``model.NAME``, optimizer moments as ``optimizer.NAME.MOMENT``.

    Args:
        parameters: of this process, by name.
        optimizers: of these.
        holdings: of those that are parts of what their names stand for.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        holdings: Mapping[str, Holding],
    ) -> None:
        self._parameters, self._optimizers = parameters, optimizers
        self._holdings = holdings

    def tensors(self) -> dict[str, Tensor]:
        """Those of this process, in the memory they are used in."""
        found: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in self._parameters.items()}
        for name, optimizer, parameter in self._optimized():
            for moment, tensor in optimizer.state[parameter].items():
                found[f"optimizer.{name}.{moment}"] = tensor
        return found

    def in_checkpoint(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors()`` as checkpoints take them: parts know what they are parts of."""
        parts = {f"model.{name}": held for name, held in self._holdings.items()}
        for name, optimizer, parameter in self._optimized():
            for moment in optimizer.state[parameter]:
                if name in self._holdings:
                    parts[f"optimizer.{name}.{moment}"] = self._holdings[name]
        return {
            name: parts[name].in_checkpoint(tensor) if name in parts else tensor
            for name, tensor in tensors.items()
        }

    def take(self, stored: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint, each read when its turn comes.

        Raises:
            ValueError: some are missing; nothing is taken then.
        """
        self._check_complete(list(stored))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                held = self._holdings.get(name, _ALL)
                parameter.copy_(held.of(stored[f"model.{name}"]))
        for name, optimizer, parameter in self._optimized():
            prefix, held = f"optimizer.{name}.", self._holdings.get(name, _ALL)
            optimizer.state[parameter] = {
                key.removeprefix(prefix): held.of(stored[key]).to(parameter.device)
                for key in stored
                if key.startswith(prefix)
            }

    def _check_complete(self, stored: list[str]) -> None:
        """Every parameter is there; and the same moments of all that an optimizer has, or none of
        any before an update."""
        known = set(stored)
        missing = [f"model.{name}" for name in self._parameters if f"model.{name}" not in known]
        moments: dict[str, set[str]] = {}
        for key in stored:
            if key.startswith("optimizer."):
                name, _, moment = key.removeprefix("optimizer.").rpartition(".")
                moments.setdefault(name, set()).add(moment)
        for optimizer in self._optimizers if moments else ():
            names = [name for name, its, _ in self._optimized() if its is optimizer]
            every = set().union(*(moments.get(name, ()) for name in names))
            for name in names:
                lacking = [f"{name}.{one}" for one in sorted(every - moments.get(name, set()))]
                missing += [f"optimizer.{one}" for one in (lacking if name in moments else [name])]
        hint = "resume from a checkpoint that a run wrote, or start over in another folder"
        got = f"{missing[0]} and {len(missing) - 1} more missing" if missing else ""
        check(not missing, "checkpoint tensors", "all of the model and its optimizer", got, hint)

    def _optimized(self) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter]]:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for optimizer in self._optimizers:
            for parameter in itertools.chain(*(g["params"] for g in optimizer.param_groups)):
                yield names[id(parameter)], optimizer, parameter
