"""Re-measure the figures this repository claims: ``python -m benches.figures --area kv``.

An area is a module of this package with ``rows() -> Iterator[Row]``; a row that takes minutes is
marked ``nightly`` and runs with ``--nightly``. Results are appended to the tables of the README
files between ``<!-- figures:AREA -->`` marks, and nowhere by hand.
"""
