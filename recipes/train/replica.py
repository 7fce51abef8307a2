"""``Replica``: the part of the model a process holds, and how the gradients of a step are made."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.pipeline import Executor, Schedule, TensorSpec, TraceEvent, Transport
from blocks.sharding import Group
from recipes.model import Decoder, ModelConfig
from recipes.train.config import TrainConfig
from recipes.train.data import Batch, document_bounds
from recipes.train.lanes import LaneSums
from recipes.train.layout import stage_layers
from recipes.train.order import recomputed_stages
from recipes.train.shares import Complete, Shares
from recipes.train.stage import EMBEDDING, tied_weights
from recipes.train.stages import holdings_of, make_stage, named_parameters

Key = tuple[int, int]
"""(sequence, slice)."""
Sequences = Sequence[Mapping[str, Tensor]]
"""Microbatches: ``inputs`` and ``labels``, int64 [num_rows, seq_len]; see also ``slice_attend``."""


class Replica:
    """The stages of one pipeline rank, their parameters by name, and the way through them.

    Invariants:
        1. Every parameter of the model has one name, the same in every layout: ``names`` lists all
           of them, ``parameters`` those that live here. A tied head on another rank than the
           embedding goes by the embedding's name, has the same gradient and stays equal to it.
        2. What ``gradients`` leaves depends on the sequences and their lanes, not on the layout.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        schedule: Schedule,
        bounds: Sequence[int],
        transport: Transport,
        *,
        tensor: Group | None = None,
        replicas: Any = None,
    ) -> None:
        """
        Args:
            transport: of the pipeline.
            tensor: the tensor-parallel ranks that share each layer here; None: none do.
            replicas: process group that shares parameters under ``fsdp``.
        """
        self.config, self.model = config, model
        self.has_say = tensor is None or tensor.rank == 0  # whose losses count
        self.schedule, self.bounds = schedule, tuple(bounds)
        self.names = tuple(name for name, _ in Decoder(model, device="meta").named_parameters())
        layers, rank = stage_layers(config), transport.rank
        self.rank = rank  # of the pipeline
        self.is_traced = True  # no other process does the same
        here = [stage for stage, at in enumerate(schedule.placement) if at == rank]
        self.stages = {stage: make_stage(config, model, layers, stage, tensor) for stage in here}
        self.parameters, self.copies = named_parameters(self.stages.values())
        self._shares = (
            Shares(self.stages.values(), replicas, config.device) if config.fsdp else None
        )
        if self._shares is not None:
            self.parameters = self._shares.parameters
        self.holdings = holdings_of(self.stages.values(), self.parameters, tensor, self._shares)
        self.joined: tuple[tuple[str, ...], ...] = ()  # names of the rows of one matrix
        self.losses: Tensor | None = None  # of the last step, where the last stage is
        self.listener: Callable[[TraceEvent], None] | None = None  # told of every action
        self._executor = Executor(
            rank,
            schedule,
            self.stages,
            transport,
            wire=self._wire,
            recompute=recomputed_stages(config),
            ties=tied_weights(model, len(layers)),
            seed=config.seed,
            device=config.device,
            on_event=self.hear,
        )

    def sequences(self, batch: Batch) -> list[dict[str, Tensor]]:
        """A batch in microbatches, in the order of its rows."""
        size, end = self.config.microbatch, self.model.eos_token_ids[0]
        assert size is not None, "resolved"
        found = []
        for inputs, labels in zip(batch.inputs.split(size), batch.labels.split(size), strict=True):
            data = {"inputs": inputs, "labels": labels}
            if self.config.document_mask:
                data["documents"] = document_bounds(inputs, end)
            found.append({name: tensor.to(self.config.device) for name, tensor in data.items()})
        return found

    def gradients(
        self,
        sequences: Sequences,
        *,
        lanes: Sequence[int],
        scale: float,
        step: int,
        first: int,
        complete: Complete,
    ) -> Tensor:
        """Leave the gradients of ``scale`` times the sum of all losses in ``.grad``.

        Args:
            lanes: of every sequence.
            scale: what the losses' sum is multiplied by.
            step: which step it is. first: number of the first sequence in the whole batch.
            complete: is given the gradients by name, whole or tensor-parallel parts, before
                replicas that share parameters take their rows.

        Returns:
            Summed loss of every slice, float64 [num_sequences, num_slices]; zeros on ranks
            without the last stage.
        """
        with contextlib.ExitStack() as stack:
            named = self.parameters
            if self._shares is not None:
                stack.enter_context(self._shares.whole(complete))
                named = dict(self._shares.named())
            losses = self._run_lanes(sequences, lanes, scale, step, first, named)
            if self._shares is None:
                complete({name: p.grad for name, p in named.items() if p.grad is not None})
        self.losses = losses if self.has_loss else None
        return losses

    @property
    def has_loss(self) -> bool:
        """Whether the last stage is here."""
        return any(stage.is_last for stage in self.stages.values())

    def _run_lanes(
        self,
        sequences: Sequences,
        lanes: Sequence[int],
        scale: float,
        step: int,
        first: int,
        named: Mapping[str, nn.Parameter],
    ) -> Tensor:
        for stage in self.stages.values():
            stage.zero_grad(set_to_none=True)
        losses = torch.zeros(len(sequences), len(self.bounds) - 1, dtype=torch.float64)
        # One process has no bubble between lanes, and its executor no tie inside a single stage.
        parts = [range(len(sequences))]
        if len(self.schedule.placement) == 1:
            parts = [
                range(place, place + self.schedule.num_sequences)
                for place in range(0, len(sequences), self.schedule.num_sequences)
            ]
        sums = LaneSums()
        for part in parts:
            result = self._executor.step(
                [sequences[i] for i in part],
                [self.bounds] * len(part),
                loss_scale=scale,
                step_index=step,
                sequence_ids=[first + i for i in part],
                lanes=[lanes[i] for i in part],
            )
            for (sequence, piece), loss in numbers_of(result.losses):
                losses[part[sequence], piece] = loss
            self._join_uses()
            if len(parts) > 1:
                sums.add(_take_gradients(named))
        if len(parts) > 1:
            for parameter, total in zip(named.values(), sums.total(), strict=True):
                parameter.grad = total
        return losses

    def _join_uses(self) -> None:
        """The gradient of an embedding and a tied head in one stage; others the executor joins."""
        for stage in self.stages.values():
            if stage.head is None or not stage.tied or EMBEDDING in self.copies:
                continue
            grad = stage.head.weight.grad
            if stage.embed is not None and stage.embed.weight.grad is not None and grad is not None:
                stage.embed.weight.grad += grad
            stage.head.weight.grad = None

    def loss_sums(self, sequences: Sequences) -> Tensor:
        """Summed loss of every sequence, float64 [num_sequences], without gradients; zeros on
        ranks without the last stage."""
        totals = torch.zeros(len(sequences), dtype=torch.float64)
        for stage in self.stages.values():
            stage.eval()
        losses: dict[tuple[int, int], Tensor] = {}
        with self._shares.whole() if self._shares else contextlib.nullcontext():
            if sequences:
                bounds = [self.bounds] * len(sequences)
                losses = self._executor.forward_only(sequences, bounds).losses
        for stage in self.stages.values():
            stage.train()
        for (sequence, _), loss in sorted(numbers_of(losses)):
            totals[sequence] += loss
        return totals

    def publish(self) -> None:
        """After an update: parameters are used from where the optimizer has them."""

    def drop(self) -> None:
        """After a step that is not taken: the next one begins with other gradients anyway."""

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return sum(p.numel() for p in Decoder(self.model, device="meta").parameters())

    def hear(self, event: TraceEvent) -> None:
        """Pass an action that was done on to the listener."""
        if self.listener is not None:
            self.listener(event)

    def _wire(self, source: int, target: int, num_tokens: int) -> list[TensorSpec]:
        rows = self.config.microbatch or 1
        dtype = getattr(torch, self.config.dtype)
        return [TensorSpec((rows * num_tokens, self.model.hidden_size), dtype)]


def numbers_of(losses: Mapping[Key, Tensor]) -> list[tuple[Key, float]]:
    """Losses as numbers, all fetched from an accelerator at once."""
    if not losses:
        return []
    return list(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))


def _take_gradients(named: Mapping[str, nn.Parameter]) -> list[Tensor]:
    found = []
    for name, parameter in named.items():
        assert parameter.grad is not None, f"{name} is used by every sequence"
        found.append(parameter.grad)
        parameter.grad = None
    return found
