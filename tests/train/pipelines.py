"""Runs of a few steps in one process, in threads and in processes, and what they compute."""

import dataclasses
import hashlib
import threading

import torch
from torch import Tensor

from blocks.pipeline import InProcessTransport, in_process_transports, run_ranks
from recipes.train import TrainConfig, tiny
from recipes.train.config import resolve
from recipes.train.layout import layout_of
from recipes.train.place import Place
from recipes.train.prepare import Prepared
from recipes.train.trainer import Trainer

SMALL = dataclasses.replace(
    tiny(),
    num_layers=4,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    intermediate_size=24,
    context_len=32,
    vocab_size=300,
    batch_size=4,
    microbatch=1,
    max_corpus_bytes=40_000,
    num_steps=1,
)


@dataclasses.dataclass(frozen=True)
class ThreadPlace(Place):
    """A pipeline rank in a thread."""

    meeting: threading.Barrier = dataclasses.field(default_factory=lambda: threading.Barrier(1))
    brought: dict[int, Tensor] = dataclasses.field(default_factory=dict)

    def collect(self, numbers: Tensor) -> Tensor:
        self.brought[self.rank] = numbers
        self.meeting.wait()
        total = torch.stack([self.brought[rank] for rank in sorted(self.brought)]).sum(0)
        self.meeting.wait()
        return total


def facts(trainers: list[Trainer], num_steps: int) -> str:
    """Losses and norms of some steps, then every parameter, as one digest."""
    digest = hashlib.sha256()
    trainer = trainers[0]
    assert trainer.step == num_steps
    digest.update(repr((trainer.losses, trainer.grad_norm)).encode())
    parameters = {}
    for one in trainers:
        for name, parameter in one.replica.parameters.items():
            found = parameters.setdefault(name, parameter)
            assert torch.equal(found, parameter), f"{name} differs between its homes"
    for name in trainer.replica.names:
        digest.update(parameters[name].detach().numpy().tobytes())
    return digest.hexdigest()


def alone(config: TrainConfig) -> TrainConfig:
    """The config on one process: without all that must not matter."""
    where = {"dp": 1, "pp": 1, "chunks": 1, "schedule": "auto", "layers_per_stage": None}
    return dataclasses.replace(resolve(config), **where, recompute=False)


def in_one_process(config: TrainConfig, data: Prepared) -> str:
    trainer = Trainer(alone(config), data)
    for _ in range(config.num_steps):
        trainer.train_step()
    trainer.losses.append(trainer.evaluate(160).loss)
    return facts([trainer], config.num_steps)


def in_threads(config: TrainConfig, data: Prepared) -> str:
    """A pipeline whose ranks are threads."""
    meeting, brought = threading.Barrier(config.pp), {}

    def work(transport: InProcessTransport) -> Trainer:
        place = ThreadPlace(
            layout=layout_of(config), rank=transport.rank, meeting=meeting, brought=brought
        )
        try:
            trainer = Trainer(config, data, place=place, transport=transport)
            for _ in range(config.num_steps):
                trainer.train_step()
            trainer.losses.append(trainer.evaluate(160).loss)
        except BaseException:
            meeting.abort()
            raise
        return trainer

    trainers = run_ranks(work, in_process_transports(config.pp))
    assert len({(tuple(t.losses), t.grad_norm) for t in trainers}) == 1
    return facts(trainers, config.num_steps)


def on_one_rank(
    configs: list[TrainConfig], data: Prepared
) -> list[tuple[tuple, dict[str, Tensor]]]:
    """What a process of a job says of one config after another: losses and norm, parameters."""
    said = []
    for config in configs:
        with Place.join(layout_of(config)) as place:
            trainer = Trainer(config, data, place=place)
            for _ in range(config.num_steps):
                trainer.train_step()
            trainer.losses.append(trainer.evaluate(160).loss)
            state = {name: p.detach() for name, p in trainer.replica.parameters.items()}
            said.append(((tuple(trainer.losses), trainer.grad_norm), state))
    return said
