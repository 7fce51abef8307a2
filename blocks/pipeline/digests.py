"""``Digests``: hashes of what every action of a rank makes, for finding where two runs part."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


class Digests:
    """Watches stages through hooks; ``Recorder`` takes a digest after every action.

    Of a forward that is the outputs, of a backward the gradients of the inputs and of the weights
    whose gradient it makes; a weight gradient of its own has none. A backward that makes its
    activations again hashes them too. Equal digests mean equal bits. Hashing waits for the device
    and copies to the host, so times taken beside it say little.

    >>> digests = Digests()
    >>> stage = nn.Linear(2, 2)
    >>> digests.watch(stage)
    >>> _ = stage(torch.zeros(1, 2))
    >>> len(digests.take()), digests.take()
    (16, '')
    """

    def __init__(self) -> None:
        self._made: list[tuple[str, bytes]] = []

    def watch(self, stage: nn.Module) -> None:
        """Hash what ``stage`` makes from now on."""
        stage.register_forward_hook(self._see_forward)
        for name, parameter in stage.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._see(f"gradient of {name}"))

    def take(self) -> str:
        """The digest of all that was made since the last time; empty if that is nothing.

        Gradients come in an order that autograd chooses, so they are sorted by name.
        """
        if not self._made:
            return ""
        found = hashlib.blake2b(digest_size=8)
        for name, hashed in sorted(self._made):
            found.update(name.encode() + b"\0" + hashed)
        self._made.clear()
        return found.hexdigest()

    def _see_forward(self, stage: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        for number, tensor in enumerate(several):
            self._keep(f"output {number}", tensor)
        for number, tensor in enumerate(inputs):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self._see(f"gradient of input {number}"))

    def _see(self, name: str) -> Any:
        return lambda gradient: self._keep(name, gradient)

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        if tensor is None:  # its product was put aside
            return
        plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        said = f"{tensor.dtype} {list(tensor.shape)}".encode()
        hashed = hashlib.blake2b(said, digest_size=16)
        hashed.update(plain.numpy().tobytes())
        self._made.append((name, hashed.digest()))
