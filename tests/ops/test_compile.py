import subprocess
import sys


def test_torch_compile_follows_a_layer_into_one_graph_with_and_without_gradients() -> None:
    """In a fresh process: the annotations that tests execute cannot be traced."""
    command = [sys.executable, "-m", "tests.ops.compiled_layer", "default", "native", "triton"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_torch_compile_keeps_experts_and_quantised_products_as_operators() -> None:
    command = [sys.executable, "-m", "tests.ops.compiled_experts"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
