"""The kernel matrix: every kernel at a named shape, its two targets, and the peers beside it.

python -m benches.matrix             # measure on this accelerator; without one, list the rows
python -m benches.matrix --tiny      # run every row's code at small shapes, interpreter and all
"""

from collections.abc import Iterator

from benches.matrix.row import Row


def rows() -> Iterator[Row]:
    """Every row, in the order of the table."""
    from benches.matrix import decode, matmul, norms, prefill, small

    for module in (decode, prefill, norms, small, matmul):
        yield from module.rows()
