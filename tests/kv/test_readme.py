"""The example of the README runs and says what it claims."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "blocks" / "kv" / "README.md"


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.group(1), names)
    assert printed.getvalue().startswith("496 tokens fit: 31 blocks x 16 tokens")
    manager = names["manager"]
    assert manager.num_hit_tokens == 32
    assert manager.table(2).num_tokens == 41
    assert manager.table(2).block_ids[:2] == manager.table(0).block_ids[:2]
    manager.check_invariants()
