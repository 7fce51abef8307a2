"""``PlannedTrainer``: a ``Trainer`` whose steps are those of a parallel plan."""

import dataclasses
from typing import Any

from blocks.pipeline import Transport
from recipes.plan.execute import PlannedJob
from recipes.train.checkpoint import Checkpoint, StoredCheckpoint
from recipes.train.config import TrainConfig
from recipes.train.model import model_config
from recipes.train.place import Place
from recipes.train.planned import parallel_plan
from recipes.train.planned_job import job_for
from recipes.train.planned_replica import PlannedReplica
from recipes.train.prepare import Prepared
from recipes.train.split_tensors import SplitTensors, join_tensors
from recipes.train.trainer import Trainer


class PlannedTrainer(Trainer):
    """Takes the trainer's batches, optimizer, rates and checkpoints through planned stages.

    A checkpoint has the names and shapes of the decoder's own parameters, so any plan can go on
    from it, and a run without one too.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Prepared,
        *,
        place: Place | None = None,
        job: PlannedJob | None = None,
    ) -> None:
        """
        Args:
            job: of all devices; default: made from the plan here.
        """
        self._job = job
        super().__init__(config, data, place=place)

    def _make_replica(self, transport: Transport | None) -> PlannedReplica:
        plan = parallel_plan(self.config)
        assert plan is not None, "a trainer for plans"
        model = model_config(self.config, self.data.tokenizer)
        job = self._job or job_for(self.config, model, plan)
        pipeline = self.place.planned(job, lambda event: self._planned.hear(event))
        self._planned = PlannedReplica(self.config, model, pipeline, self.place.rank)
        return self._planned

    def checkpoint(self) -> Checkpoint:
        made = super().checkpoint()
        return dataclasses.replace(made, tensors=join_tensors(made.tensors, self._planned.model))

    def restore(self, checkpoint: StoredCheckpoint) -> None:
        tensors: Any = SplitTensors(checkpoint.tensors, self._planned.model)
        super().restore(dataclasses.replace(checkpoint, tensors=tensors))
        self._planned.refresh(tensors)
