"""Composable, Triton-first building blocks for large language models.

Each sub-package is one block and imports on its own: ``blocks.kv`` (who owns which page),
``blocks.attention`` (attention over dense, packed and paged keys), ``blocks.ops`` (the small
operations between attention calls) and ``blocks.sched`` (who runs next). Importing ``blocks``
itself imports nothing else.
"""

__version__ = "0.1.0"
