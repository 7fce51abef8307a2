"""Differentiable operations as ``blocks._autograd`` has them."""

from blocks._autograd import Operation, must_trace

__all__ = ["Operation", "must_trace"]
