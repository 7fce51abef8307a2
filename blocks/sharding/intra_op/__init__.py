"""One strategy for every operation of a graph on a mesh, at least time. Needs numpy, no torch."""

from blocks.sharding.intra_op.eliminate import Elimination, eliminate
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.intra_op_plan import IntraOpPlan
from blocks.sharding.intra_op.minimise import minimise
from blocks.sharding.intra_op.pareto import pareto
from blocks.sharding.intra_op.pins import Pin
from blocks.sharding.intra_op.pose import Posed, adamw_bytes, pose
from blocks.sharding.intra_op.price import CollectiveUse, Move, Price, moves, price
from blocks.sharding.intra_op.problem import Minimum, Problem, Term
from blocks.sharding.intra_op.solve import solve
from blocks.sharding.intra_op.table_cache import TableCache
from blocks.sharding.intra_op.with_memory import OutOfMemory, Point, with_memory

__all__ = [
    "CollectiveUse",
    "Elimination",
    "Hints",
    "IntraOpPlan",
    "Minimum",
    "Move",
    "OutOfMemory",
    "Pin",
    "Point",
    "Posed",
    "Price",
    "Problem",
    "TableCache",
    "Term",
    "adamw_bytes",
    "eliminate",
    "minimise",
    "moves",
    "pareto",
    "pose",
    "price",
    "solve",
    "with_memory",
]
