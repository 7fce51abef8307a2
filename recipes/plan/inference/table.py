"""A serving plan as lines of text."""

from blocks.pipeline.view.scale import bytes_text
from recipes.plan.inference.plan import Configuration, InferencePlan


def table(plan: InferencePlan) -> list[str]:
    """A line for each configuration: the smallest batch's times, and what a device holds."""
    model, cluster = plan.model, plan.cluster
    lines = [
        f"{model.name} on {plan.device} of {cluster.name}: simulated from the cluster file "
        f"({plan.source})",
        "",
        f"{'op x pp':>8}{'latency':>12}{'slowest':>12}{'requests/s':>12}{'collectives':>13}"
        f"{'sending':>10}{'uneven':>10}{'weights':>11}{'KV/token':>10}  layers",
    ]
    for one in plan.configurations:
        first, size = one.first_pass(), one.first_pass().size
        over = one.overheads
        kv = max(stage.kv_bytes for stage in one.stages)
        held = bytes_text(float(one.weight_bytes))
        lines.append(
            f"{f'{one.op} x {one.pp}':>8}{_ms(first.latency_s):>12}{_ms(first.slowest_s):>12}"
            f"{size / first.slowest_s:>12,.1f}{_ms(over.collective_s):>13}{_ms(over.send_s):>10}"
            f"{_ms(over.uneven_s):>10}{held:>11}{kv:>10,}  {_cuts(one)}"
        )
    return [*lines, *(f"left out: {text}" for text in plan.left_out)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _cuts(one: Configuration) -> str:
    return " ".join(str(stage.stop - stage.first) for stage in one.stages)
