"""``Trainer``: a model, its optimizers, and one step after another."""

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from blocks._checks import check
from blocks.pipeline import Transport
from blocks.sharding import sum_shared
from recipes.model import Decoder
from recipes.train.checkpoint import Checkpoint, StoredCheckpoint
from recipes.train.config import TrainConfig, resolve
from recipes.train.data import IGNORE, Batch
from recipes.train.evaluate import HeldOut, cut_windows
from recipes.train.holding import Holding
from recipes.train.lanes import sum_across, tree_sum_across
from recipes.train.layout import check_layout
from recipes.train.model import model_config
from recipes.train.optim import build_optimizers, clip
from recipes.train.order import build_schedule, row_bounds
from recipes.train.place import Place
from recipes.train.prepare import Prepared
from recipes.train.rate import learning_rate
from recipes.train.replica import Replica
from recipes.train.same_run import check_same_run
from recipes.train.stage import tied_weights
from recipes.train.state_tensors import StateTensors
from recipes.train.tokenizer import tokenizer_tensor

MAX_SKIPPED_IN_A_ROW = 25


class TrainingDiverged(RuntimeError):
    """Gradients or parameters are not finite and stay so; nothing of it was saved."""


class Trainer:
    """The part of a run that one process has: parameters, optimizers, and how far they are.

    Invariants:
        1. ``step`` optimizer steps are done, skipped ones counted in; all processes agree.
        2. What the next step computes depends on ``state_tensors()`` of all processes, ``step``
           and the prepared data only; while ``canonical`` not on the layout either.
        3. Every parameter is finite.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Prepared,
        *,
        place: Place | None = None,
        transport: Transport | None = None,
    ) -> None:
        """
        Args:
            place: of this process among those of the run; default: it is the only one.
            transport: of the pipeline; default: what suits the place.
        """
        self.config, self.data, self.place = resolve(config), data, place or Place()
        check_layout(self.config)
        self.replica = self._make_replica(transport)
        parameters, holdings = self.replica.parameters, self.replica.holdings
        self.optimizers = build_optimizers(
            parameters, self.config, holdings, joined=self.replica.joined
        )
        self._state = StateTensors(parameters, self.optimizers, holdings)
        self.step = 0
        self.num_skipped_steps = 0
        self.skipped_in_a_row = 0
        self.losses: list[float] = []  # since the last log entry
        self.grad_norm = 0.0
        self._squares: dict[str, float] = {}  # of the gradients' norms, of this step

    def _make_replica(self, transport: Transport | None) -> Replica:
        model = model_config(self.config, self.data.tokenizer)
        schedule, bounds = build_schedule(self.config), row_bounds(self.config)
        ties = tied_weights(model, len(schedule.placement))
        return Replica(
            self.config,
            model,
            schedule,
            bounds,
            transport or self.place.transport(schedule, ties),
            tensor=self.place.tensor,
            replicas=self.place.replicas,
        )

    @property
    def decoder(self) -> Decoder:
        """The whole model where one process has it, made of the very parameters trained."""
        (stage,) = self.replica.stages.values()
        whole = Decoder(self.replica.model, device="meta")
        for name, parameter in self.replica.parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(owner), leaf, parameter)
        whole.register_buffer("cos_sin", dict(stage.named_buffers())["cos_sin"], persistent=False)
        return whole

    def train_step(self) -> None:
        """One batch, one update; a gradient that is not finite is counted and not applied.

        Raises:
            TrainingDiverged: after many such steps in a row.
        """
        config, mine = self.config, self.place.position.dp
        num_rows = config.batch_size // config.dp
        batch = self.data.batches.batch(self.step, range(mine * num_rows, (mine + 1) * num_rows))
        num_labels = self._count_labels(batch)
        sequences = self.replica.sequences(batch)
        assert config.lanes is not None, "resolved"
        in_a_lane = len(sequences) * config.dp // config.lanes
        losses = self.replica.gradients(
            sequences,
            lanes=[i // in_a_lane for i in range(len(sequences))],
            scale=1 / max(1, num_labels),
            step=self.step,
            first=mine * len(sequences),
            complete=self._complete,
        )
        self.grad_norm, loss = self._agree(losses)
        if math.isfinite(self.grad_norm):
            grads = [p.grad for p in self.replica.parameters.values() if p.grad is not None]
            clip(grads, self.grad_norm, config.clip_norm)
            self._update(learning_rate(self.step, config))
            self.losses.append(loss / max(1, num_labels))
            self.skipped_in_a_row = 0
        else:
            self.replica.drop()
            self.num_skipped_steps += 1
            self.skipped_in_a_row += 1
        self.step += 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"gradient: expected finite numbers, got none in the {self.skipped_in_a_row} steps "
                f"up to {self.step}; lower learning_rate or raise warmup_steps, then resume"
            )

    def _count_labels(self, batch: Batch) -> int:
        """Labels of the whole batch, over all replicas."""
        counts = torch.zeros(self.config.dp, dtype=torch.float64)
        here = self.place.position
        if (here.pp, here.tp) == (0, 0):
            counts[here.dp] = (batch.labels != IGNORE).sum()
        return int(self.place.collect(counts).sum())

    def _complete(self, grads: Mapping[str, Tensor]) -> None:
        """Gradients of all lanes, from those of the lanes here; their squared norms noted."""
        if self.config.dp > 1:
            add = tree_sum_across if self.config.canonical else sum_across
            add(list(grads.values()), self.place.replicas)
        holdings, tensor = self.replica.holdings, self.place.tensor
        for name, grad in grads.items():
            held = holdings.get(name, _ALL)
            if held.cut is not None and tensor is not None:
                sum_shared(grad, held.cut, tensor)
            if self.place.position.dp == 0 and name not in self.replica.copies:
                self._squares[name] = held.square(grad)

    def _agree(self, losses: Tensor) -> tuple[float, float]:
        """Norm of all gradients and sum of all losses, the same bits on every process.

        Each process fills in what it alone knows, then all add up everything in one order: squared
        norms in the order of parameters, losses in that of sequences and slices.
        """
        here, names = self.place.position, self.replica.names
        squares = torch.zeros(self.place.layout.tp, len(names), dtype=torch.float64)
        if here.dp == 0:
            for i, name in enumerate(names):
                squares[here.tp, i] = self._squares.get(name, 0.0)
        squares = rearrange(squares, "rank parameter -> (parameter rank)")
        all_losses = torch.zeros(self.config.dp, losses.numel(), dtype=torch.float64)
        if self.replica.has_say:
            all_losses[here.dp] = losses.flatten()
        known = self.place.collect(torch.cat([squares, all_losses.flatten()])).tolist()
        return math.sqrt(sum(known[: len(squares)])), sum(known[len(squares) :])

    def _update(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.replica.publish()

    def evaluate(self, max_tokens: int | None) -> HeldOut:
        """Loss and bits per byte of held-out text; the replicas share the windows."""
        length, dp = self.config.context_len, self.config.dp
        windows = cut_windows(
            self.data.held_out, self.data.token_bytes, context_len=length, max_tokens=max_tokens
        )
        rows = self.config.microbatch
        assert rows is not None, "resolved"
        sequences = self.replica.sequences(Batch(*windows.padded(rows, length, IGNORE)))
        mine = range(self.place.position.dp, len(sequences), dp)
        totals = torch.zeros(len(sequences), dtype=torch.float64)
        found = self.replica.loss_sums([sequences[i] for i in mine])
        if self.replica.has_say:
            totals[list(mine)] = found
        return windows.held_out(sum(self.place.collect(totals).tolist()))

    def checkpoint(self) -> Checkpoint:
        """Everything a later process needs to go on bit for bit.

        Raises:
            TrainingDiverged: a parameter is not finite, so this is not worth keeping.
        """
        tensors = self._state.tensors()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise TrainingDiverged(f"{name}: expected finite values at step {self.step}")
        state = {
            "config": self.config.to_json(),
            "corpus_digest": self.data.corpus.digest,
            "num_skipped_steps": self.num_skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "losses": self.losses,
            "torch": torch.__version__,
        }
        kept = self._state.in_checkpoint(tensors)
        return Checkpoint(
            self.step, kept | {"tokenizer": tokenizer_tensor(self.data.tokenizer)}, state
        )

    def restore(self, checkpoint: StoredCheckpoint) -> None:
        """Take over a checkpoint of the same run, written in any layout.

        Raises:
            ValueError: it belongs to another configuration or another text, or lacks tensors.
        """
        state = checkpoint.state
        digest = self.data.corpus.digest
        hint = "resume on the text the run began with"
        check(state["corpus_digest"] == digest, "corpus", state["corpus_digest"], digest, hint)
        check_same_run(TrainConfig.from_json(state.get("config")), self.config)
        self._state.take(checkpoint.tensors)
        self.step = checkpoint.step
        self.num_skipped_steps = state["num_skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.losses = list(state["losses"])

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters and optimizer moments of this process, by name."""
        return self._state.tensors()


_ALL = Holding()
