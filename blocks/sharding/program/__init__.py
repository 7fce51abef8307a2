"""A planned step as a program: lowered from a graph and its strategies, counted, and printed."""

from blocks.sharding.program.count import Counts, Traffic, count
from blocks.sharding.program.instruction import Compute, Free, Instruction, Replace, Reshard
from blocks.sharding.program.lower import BUFFER, RENEWED, lower
from blocks.sharding.program.program import Program

__all__ = [
    "BUFFER",
    "RENEWED",
    "Compute",
    "Counts",
    "Free",
    "Instruction",
    "Program",
    "Replace",
    "Reshard",
    "Traffic",
    "count",
    "lower",
]
