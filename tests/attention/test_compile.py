import os
import subprocess
import sys


def test_torch_compile_takes_attention_whole_with_and_without_gradients() -> None:
    """In a fresh process: the annotations that tests execute cannot be traced."""
    names = ["default", "native", "torch", "triton"]
    command = [sys.executable, "-m", "tests.attention.compiled_attention", *names]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
