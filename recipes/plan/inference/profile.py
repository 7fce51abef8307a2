"""``profile_of``: a serving plan in the text format that ``blocks.sched`` places models by."""

from blocks.sched.profile import (
    BatchTime,
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
)
from recipes.plan.inference import plan as plans


def profile_of(plan: plans.InferencePlan) -> Profile:
    """The same times and bytes; its lines say that they are simulated, and from what."""
    settings = plan.settings
    source = " ".join(plan.source.replace("#", "").split()) or "no source"
    lines = (
        Provenance(
            "simulated",
            f"recipes.plan inference from cluster file {plan.cluster.name} "
            f"({plan.cluster.digest}): {source}",
        ),
        Provenance(
            "note",
            f"{settings['seq_len']} tokens a request, {settings['dtype']}; the time of a stage has "
            "what it sends to the next one; model digest " + plan.model.digest[:12],
        ),
    )
    timings = tuple(sorted(map(_timing, plan.configurations), key=lambda t: t.configuration))
    return Profile(plan.model.name, plan.device, lines, timings)


def _timing(one: plans.Configuration) -> Timing:
    rows: dict[str, list[plans.Passes]] = {"batch": [], "prefill": [], "decode": []}
    for row in one.passes:
        rows[row.kind].append(row)
    return Timing(
        Configuration(one.op, one.pp),
        tuple(stage.weight_bytes for stage in one.stages),
        activation_bytes=one.activation_bytes,
        batches=tuple(BatchTime(row.size, row.stage_s) for row in rows["batch"]),
        kv_bytes_per_token=max(stage.kv_bytes for stage in one.stages),
        prefill=tuple(PrefillTime(row.size, row.stage_s) for row in rows["prefill"]),
        decode=tuple(DecodeTime(row.size, row.context, row.stage_s) for row in rows["decode"]),
    )
