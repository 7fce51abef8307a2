"""``job_for``: what the devices of a parallel plan do in a run, and the weights it begins with."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from recipes.model import Decoder, ModelConfig
from recipes.plan.config import PlanConfig
from recipes.plan.execute import SGD, PlannedJob, job_of
from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.families.decoder_pieces import decoder_pieces
from recipes.plan.model import Call, torch_dtype, traced_step
from recipes.plan.parallel_plan import ParallelPlan
from recipes.train.config import TrainConfig
from recipes.train.joined_matrices import check_joined
from recipes.train.model import first_weights


class FirstWeights(Mapping[str, Tensor]):
    """The weights a run begins with, by planned name, made when asked for."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self._model, self._seed, self._pieces = model, seed, decoder_pieces(model)
        whole = Decoder(model, device="meta")
        self._whole = {name: tuple(one.shape) for name, one in whole.named_parameters()}
        with torch.device("meta"):
            split = TrainedDecoder(model)
        self._rows = {name: one.shape[0] for name, one in split.named_parameters()}
        self._buffers = dict(Decoder(model).named_buffers())

    def __getitem__(self, name: str) -> Tensor:
        if name in self._buffers:
            return self._buffers[name]
        piece = self._pieces[name]
        whole = torch.empty(self._whole[piece.name])
        first_weights(piece.name, whole, self._model, self._seed)
        return whole.narrow(0, piece.first_row, self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter((*self._pieces, *self._buffers))

    def __len__(self) -> int:
        return len(self._pieces) + len(self._buffers)


def job_for(config: TrainConfig, model: ModelConfig, plan: ParallelPlan) -> PlannedJob:
    """All that the devices of a run have in common.

    Raises:
        ValueError: the plan of another model, or one that no optimizer of the run goes with.
    """
    rows = config.microbatch
    assert rows is not None, "the plan says"
    asked, dtype = PlanConfig.from_json(plan.settings), getattr(torch, config.dtype)

    def call(some: int) -> Call:
        tokens = torch.empty(some, config.context_len, dtype=torch.int64, device="meta")
        return lambda: TrainedDecoder(model).to(dtype), (), {"inputs": tokens, "labels": tokens}

    traced = traced_step(
        call,
        rows,
        optimizer=asked.optimizer,
        gradient_dtype=torch_dtype("gradient_dtype", asked.gradient_dtype),
    )
    job = job_of(plan, traced, FirstWeights(model, config.seed), optimizer=SGD())
    if config.optimizer == "muon":
        check_joined(job, model)
    return job
