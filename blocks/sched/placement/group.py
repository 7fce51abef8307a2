"""``Group``: devices that share one parallel configuration and the models they host."""

from collections.abc import Callable
from typing import Any, NamedTuple

from blocks._checks import check, reading
from blocks.sched.profile.configuration import Configuration


class Group(NamedTuple):
    """Devices that work as one: each of its models is spread over all of them in the same way.

    devices: their numbers in the cluster.
    configuration: how every model of the group is spread.
    models: names of the models that have a replica here.
    kv_tokens: for each model the tokens its key-value cache has room for; empty where no model
        generates.
    """

    devices: tuple[int, ...]
    configuration: Configuration
    models: tuple[str, ...] = ()
    kv_tokens: tuple[int, ...] = ()

    def __str__(self) -> str:
        first, last = min(self.devices, default=-1), max(self.devices, default=-1)
        run = sorted(self.devices) == list(range(first, last + 1)) and len(self.devices) > 2
        devices = f"{first}-{last}" if run else ",".join(map(str, self.devices))
        models = list(self.models)
        if self.kv_tokens:
            pairs = zip(self.models, self.kv_tokens, strict=True)
            models = [f"{model} ({kv_tokens:,} tokens)" for model, kv_tokens in pairs]
        return f"devices {devices}, {self.configuration}: {', '.join(models) or 'no model'}"

    def kv_tokens_of(self, model: str) -> int:
        """Tokens that the model's key-value cache has room for here."""
        return self.kv_tokens[self.models.index(model)] if self.kv_tokens else 0

    def hosting(self, model: str, kv_tokens: int = 0) -> "Group":
        """The same group with one more model."""
        check(model not in self.models, "model", "one that is not hosted yet", repr(model))
        rooms = self.kv_tokens or (0,) * len(self.models)
        more = (*rooms, kv_tokens) if self.kv_tokens or kv_tokens else ()
        return self._replace(models=(*self.models, model), kv_tokens=more)

    def without(self, model: str) -> "Group":
        """The same group with one model less."""
        check(model in self.models, "model", f"one of {self.models}", repr(model))
        at = self.models.index(model)
        rooms = self.kv_tokens and self.kv_tokens[:at] + self.kv_tokens[at + 1 :]
        return self._replace(models=self.models[:at] + self.models[at + 1 :], kv_tokens=rooms)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {
            "devices": list(self.devices),
            "configuration": str(self.configuration),
            "models": list(self.models),
            "kv_tokens": list(self.kv_tokens),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "group") -> "Group":
        """Every value must be of its kind; nothing is converted.

        Args:
            where: what to call it in messages.

        Raises:
            ValueError: data that is no group.
        """
        with reading(where, data, cls._fields):
            shape = data["configuration"]
            check(isinstance(shape, str), f"{where}.configuration", "a text such as '2 x 4'", shape)
            return cls(
                _list_of(f"{where}.devices", data["devices"], _WHOLE),
                Configuration.parse(shape),
                _list_of(f"{where}.models", data["models"], _NAME),
                _list_of(f"{where}.kv_tokens", data["kv_tokens"], _WHOLE),
            )


_WHOLE = ("whole numbers from 0", "0, 1", lambda one: type(one) is int and one >= 0)
_NAME = ("names", '"chat"', lambda one: isinstance(one, str) and one != "")


def _list_of(
    where: str, values: object, kind: tuple[str, str, Callable[[object], bool]]
) -> tuple[Any, ...]:
    """The values of a list, all of one kind.

    Raises:
        ValueError: no list, or one of something else.
    """
    words, example, fits = kind
    hint = f"write it as [{example}]; [] for none"
    check(isinstance(values, list), where, f"a list of {words}", f"{values!r:.80}", hint)
    assert isinstance(values, list)
    for at, value in enumerate(values):
        check(fits(value), f"{where}[{at}]", f"one of {words}", f"{value!r:.80}", hint)
    return tuple(values)
