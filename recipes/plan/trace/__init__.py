"""Any ``nn.Module`` as a graph that can be planned, and run as planned."""

from recipes.plan.trace.interpret import interpret, run_call
from recipes.plan.trace.joint_graph import Place
from recipes.plan.trace.traced_module import TracedModule, TracedOp
from recipes.plan.trace.tracing import trace
from recipes.plan.trace.untraceable import Untraceable

__all__ = ["Place", "TracedModule", "TracedOp", "Untraceable", "interpret", "run_call", "trace"]
