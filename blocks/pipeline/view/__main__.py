"""``python -m blocks.pipeline.view trace.jsonl -o step.html``: see the package."""

import argparse
import sys
from pathlib import Path

from blocks.pipeline.measured import wall_over_cpu
from blocks.pipeline.replay import Replay, replay
from blocks.pipeline.schedules import SCHEDULES
from blocks.pipeline.trace import Fact, Trace
from blocks.pipeline.trace_file import read_traces
from blocks.pipeline.view import figure, sliders_of, to_html, to_perfetto, to_svg

ENDINGS = (".html", ".svg", ".json")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m blocks.pipeline.view",
        description="Draw a step: what the simulator makes of its durations, above what was "
        "measured.",
    )
    parser.add_argument("traces", nargs="+", help="one file, or those of all ranks")
    parser.add_argument("-o", "--output", required=True, help="step.html, step.svg or step.json")
    parser.add_argument("--step", type=int, help="which step, if there are several; the last")
    parser.add_argument("--width", type=int, default=1240, help="of the drawing, in pixels")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    if output.suffix not in ENDINGS:
        parser.error(f"--output: expected a name that ends in {', '.join(ENDINGS)}, got {output}")
    try:
        trace = _choose(read_traces(*arguments.traces), arguments.step)
        text = _draw(trace, output.suffix, arguments.width)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    output.write_text(text, encoding="utf-8")
    print(f"{output}: {len(trace.events)} events of {trace.schedule.num_ranks} ranks")
    return 0


def _choose(traces: list[Trace], step: int | None) -> Trace:
    if step is None:
        return traces[-1]
    for trace in traces:
        if trace.meta.get("step") == step:
            return trace
    known = [trace.meta.get("step") for trace in traces]
    raise ValueError(f"step: expected one of {known}, got {step}")


def _draw(trace: Trace, ending: str, width: int) -> str:
    if ending == ".json":
        return to_perfetto(trace)
    found = replay(trace)
    print(found)
    shown = figure(
        found.replayed,
        trace,
        facts=_facts(trace, found),
        plan_title="replayed (simulated with the measured durations)",
    )
    if ending == ".svg":
        return to_svg(shown, width=width)
    return to_html(shown, sliders=sliders_of(trace, SCHEDULES), trace=trace, width=width)


def _facts(trace: Trace, found: Replay) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"replay error": f"{found.replay_error:+.1%}"}
    ratio = max(wall_over_cpu(trace))
    if ratio:
        facts["wall / CPU time"] = f"{ratio:.2f}"  # above 1, other work held a rank up
    return facts


if __name__ == "__main__":
    sys.exit(main())
