"""Pictures of plans and traces: an HTML page, a plain SVG, and JSON for Perfetto. Needs no torch.

``python -m blocks.pipeline.view trace.jsonl -o step.html`` draws a trace below its plan; the ending
of the output says what is drawn: ``.html``, ``.svg`` or ``.json``.
"""

from blocks.pipeline.view.figure import Figure, figure
from blocks.pipeline.view.page import Slider, to_html
from blocks.pipeline.view.perfetto import to_perfetto
from blocks.pipeline.view.sliders import sliders_of
from blocks.pipeline.view.svg import to_svg

__all__ = ["Figure", "Slider", "figure", "sliders_of", "to_html", "to_perfetto", "to_svg"]
