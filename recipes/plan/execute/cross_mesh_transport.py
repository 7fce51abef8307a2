"""``CrossMeshTransport``: a pipeline whose ranks are meshes of different sizes."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blocks.pipeline import Action, Handle, Kind, TensorSpec, Transport
from blocks.sharding import Run
from blocks.sharding.cross_mesh.box import Box, offset_in, overlap
from blocks.sharding.cross_mesh.plan import Transfer
from recipes.plan.execute.routes import Cargo, Routes, Way

TOKEN = TensorSpec((), torch.float32)
"""What the executor sees moving: the values travel beside it."""

Slot = tuple[Way, int, int, int]
"""(way, source stage, target stage, microbatch)."""


class Parcels:
    """Values between a device's stages and its transport.

    leaving, arrived: by slot, the device's parts by index of the value in the whole graph.
    """

    def __init__(self) -> None:
        self.leaving: dict[Slot, dict[int, Tensor]] = {}
        self.arrived: dict[Slot, dict[int, Tensor]] = {}

    def check_empty(self) -> None:
        """Between steps nothing is under way."""
        assert not self.leaving, f"not sent: {sorted(self.leaving)}"
        assert not self.arrived, f"not taken: {sorted(self.arrived)}"


class CrossMeshTransport:
    """A ``Transport`` between the ranks of a pipeline, each of which is all devices of a mesh.

    Every device of a mesh runs the executor of its pipeline rank. Where that sends, the device
    sends the parts of the values that the cross-mesh plans have it send; where that receives, the
    device receives its own and puts them together.
    """

    def __init__(
        self,
        rank: int,
        devices: Sequence[int],
        device: int,
        routes: Routes,
        parcels: Parcels,
        wire: Transport,
        where: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            rank: of the pipeline, this device's.
            devices: for every rank of the pipeline one of its devices, to ask what it does.
            device: this one, as the meshes of the programs number them.
            wire: between all devices; its ranks are devices.
            where: the torch device that values are put together on.
        """
        self._rank, self._devices = rank, tuple(devices)
        self._device, self._routes, self._parcels = device, routes, parcels
        self._wire, self._where = wire, torch.device(where)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_ranks(self) -> int:
        return len(self._devices)

    def send(self, tensor: Tensor, target_rank: int, action: Action) -> Handle:
        slot = slot_of(action)
        parts = self._parcels.leaving.pop(slot, {})
        handles = []
        for cargo in self._routes.of(*slot):
            runs = cargo.plan.reduced.runs(cargo.plan.shape, self._device)
            for transfer in cargo.plan.transfers:
                if transfer.source == self._device and not transfer.relayed:
                    piece = _slice(parts[cargo.value], transfer.box, runs).contiguous()
                    handles.append(self._wire.send(piece, transfer.target, action))
        return _Sent(tensor, handles)

    def receive(self, spec: TensorSpec, source_rank: int, action: Action) -> Handle:
        slot = slot_of(action)
        loads = [
            _Load(cargo, self._device, action, self._wire, self._where)
            for cargo in self._routes.of(*slot)
        ]
        return _Arriving(loads, slot, self._parcels)

    def post_status(self, text: str) -> None:
        self._wire.post_status(text)

    def status(self, rank: int) -> str:
        return self._wire.status(self._devices[rank])

    def give_up(self, reason: str) -> None:
        self._wire.give_up(reason)

    def given_up(self) -> str | None:
        return self._wire.given_up()


def slot_of(action: Action) -> Slot:
    """Of a send."""
    way: Way = "forward" if action.kind is Kind.SEND_FORWARD else "backward"
    return way, action.stage, action.peer, action.sequence


class _Sent:
    """Everything an action sends."""

    def __init__(self, tensor: Tensor, handles: list[Handle]) -> None:
        self._tensor, self._handles = tensor, handles

    def done(self) -> bool:
        return all(handle.done() for handle in self._handles)

    def wait(self, timeout_s: float) -> Tensor:
        until = time.monotonic() + timeout_s
        while self._handles:
            self._handles[0].wait(max(0.0, until - time.monotonic()))
            self._handles.pop(0)
        return self._tensor


class _Load:
    """A value on its way to this device, put together as its pieces come and passed on to those
    that want the same."""

    def __init__(
        self, cargo: Cargo, device: int, action: Action, wire: Transport, where: torch.device
    ) -> None:
        self._where = where
        self._cargo, self._device, self._action, self._wire = cargo, device, action, wire
        self._dtype = getattr(torch, cargo.dtype)
        self._runs = cargo.plan.target.runs(cargo.plan.shape, device)
        mine = [
            t
            for t in cargo.plan.transfers
            if t.source != t.target and (t.target == device or (t.relayed and t.source == device))
        ]
        # What is passed on is asked for in the order of the waits: all devices have the same.
        self._coming = {at: self._receive(t) for at, t in enumerate(mine) if not t.relayed}
        self._left = list(enumerate(mine))
        self._found: Tensor | None = None
        self._passed_on: list[Handle] = []

    def _receive(self, transfer: Transfer) -> Handle:
        spec = TensorSpec(tuple(run.size for run in transfer.box), self._dtype)
        return self._wire.receive(spec, transfer.source, self._action)

    def wait(self, until: float) -> Tensor:
        """The device's part."""
        if self._found is None:
            shape = [run.size for run in self._runs]
            self._found = torch.empty(shape, dtype=self._dtype, device=self._where)
            for at, transfer in self._left:
                if transfer.relayed and transfer.target == self._device:
                    self._coming[at] = self._receive(transfer)
        while self._left:
            self._pass_on(self._found)
            arrival = next((a for a, t in self._left if t.target == self._device), None)
            if arrival is not None:
                piece = self._coming[arrival].wait(max(0.0, until - time.monotonic()))
                box = dict(self._left)[arrival].box
                _slice(self._found, box, self._runs).copy_(piece)
                self._left = [one for one in self._left if one[0] != arrival]
        while self._passed_on:
            self._passed_on[0].wait(max(0.0, until - time.monotonic()))
            self._passed_on.pop(0)
        return self._found

    def _pass_on(self, found: Tensor) -> None:
        """Send what is here already, to every device in the order of the plan."""
        kept: list[tuple[int, Transfer]] = []
        for at, transfer in self._left:
            if transfer.target == self._device or any(
                self._waits_for(transfer, other) for _, other in kept
            ):
                kept.append((at, transfer))
                continue
            piece = _slice(found, transfer.box, self._runs).contiguous()
            self._passed_on.append(self._wire.send(piece, transfer.target, self._action))
        self._left = kept

    def _waits_for(self, transfer: Transfer, earlier: Transfer) -> bool:
        """Whether what is passed on is still to come, or comes after another to the same device."""
        if earlier.target == self._device:
            return overlap(earlier.box, transfer.box) is not None
        return earlier.target == transfer.target

    @property
    def value(self) -> int:
        return self._cargo.value


class _Arriving:
    """Everything an action receives; where it is all there, it lies in the parcels."""

    def __init__(self, loads: list[_Load], slot: Slot, parcels: Parcels) -> None:
        self._loads, self._slot, self._parcels = loads, slot, parcels

    def done(self) -> bool:
        return self._slot in self._parcels.arrived

    def wait(self, timeout_s: float) -> Tensor:
        until = time.monotonic() + timeout_s
        found: Mapping[int, Tensor] = {load.value: load.wait(until) for load in self._loads}
        self._parcels.arrived[self._slot] = dict(found)
        return torch.zeros(TOKEN.shape, dtype=TOKEN.dtype)


def _slice(tensor: Tensor, box: Box, runs: Sequence[Run]) -> Tensor:
    """The view of a box in what holds ``runs``."""
    for dim, run in enumerate(offset_in(box, tuple(runs))):
        tensor = tensor.narrow(dim, run.start, run.size)
    return tensor
