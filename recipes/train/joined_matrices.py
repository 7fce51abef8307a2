"""Planned parameters that are rows of one matrix of the decoder: query, key and value; gate and
up-projection."""

from collections.abc import Collection

from blocks._checks import check
from recipes.model import ModelConfig
from recipes.plan.execute import PlannedJob
from recipes.plan.families.decoder_pieces import decoder_pieces


def joined_matrices(model: ModelConfig, here: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Names of planned parameters that make one matrix together, in the order of its rows.

    Args:
        here: names of the parameters that are looked at.
    """
    pieces = decoder_pieces(model)
    matrices: dict[str, list[str]] = {}
    for name in sorted(here, key=lambda name: pieces[name].first_row):
        matrices.setdefault(pieces[name].name, []).append(name)
    return tuple(tuple(names) for names in matrices.values() if len(names) > 1)


def check_joined(job: PlannedJob, model: ModelConfig) -> None:
    """
    Raises:
        ValueError: stages of a plan part what Muon makes orthogonal together.
    """
    every = joined_matrices(model, decoder_pieces(model))
    for number, stage in enumerate(job.stages):
        here = set(stage.program.names("parameter"))
        for names in every:
            got = [name for name in names if name in here]
            expected = f"{', '.join(names)} in one stage, or none of them"
            hint = "Muon takes them as one matrix; plan again, or train with optimizer=adamw"
            check(got in ([], list(names)), f"stage {number}", expected, ", ".join(got), hint)
