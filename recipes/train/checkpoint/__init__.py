"""Checkpoints that are either complete or not there, written beside the run and by all its ranks.

A checkpoint is a folder: safetensors files, one of each rank that has something to write, an
index of the tensors and the run's state as JSON, and a manifest with the size and sha256 of every
file. It is written under a temporary name, every file is flushed to disk, the manifest comes last,
and one rename makes it visible; a crash at any moment leaves the older ones untouched. Reading
goes by the manifest alone: what does not match it is passed over, by all ranks alike, and the
checkpoint before it is taken. Nothing is pickled.

``torch.distributed.checkpoint`` plans who writes what (replicas are written once, by the rank with
least to write; pieces of a ``DTensor`` must cover it) and which pieces a reader needs, so a
checkpoint of one layout is read into any other. Tensors are whole, ``DTensor``, or ``Part`` where
a rank holds several runs of a dim (fused parameters under tensor parallelism).
"""

from recipes.train.checkpoint.checkpoint import Checkpoint, CheckpointFailed
from recipes.train.checkpoint.disk import Disk, LocalDisk
from recipes.train.checkpoint.load import (
    StoredCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    read_state,
)
from recipes.train.checkpoint.manifest import MANIFEST, CheckpointDamaged
from recipes.train.checkpoint.part import Box, Part
from recipes.train.checkpoint.ranks import GroupRanks, OneRank, Ranks
from recipes.train.checkpoint.save import save_checkpoint
from recipes.train.checkpoint.writer import CheckpointWriter

__all__ = [
    "MANIFEST",
    "Box",
    "Checkpoint",
    "CheckpointDamaged",
    "CheckpointFailed",
    "CheckpointWriter",
    "Disk",
    "GroupRanks",
    "LocalDisk",
    "OneRank",
    "Part",
    "Ranks",
    "StoredCheckpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_latest",
    "read_state",
    "save_checkpoint",
]
