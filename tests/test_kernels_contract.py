"""What every public tensor operation promises, asked of each of them in turn."""

import functools
import importlib
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from blocks._work import Work
from tests.contract_table import (
    HOW,
    TABLE,
    Operation,
    call,
    operation,
    parameters,
    public_operations,
    reference_of,
    tensors,
    wrong_arguments,
)
from tests.numerics import assert_close

FAST = {name: entry for name, entry in TABLE.items() if "impl" in parameters(operation(name))}


@functools.cache
def implementations(name: str) -> tuple[str, ...]:
    """The implementations of an operation that run on these inputs."""
    found = []
    for impl in ("reference", "torch", "native", "triton"):
        try:
            call(name, TABLE[name].make(), impl=impl)
        except ValueError as error:
            if "impl" not in str(error):
                raise
        else:
            found.append(impl)
    return tuple(found)


def test_every_public_operation_is_in_the_table():
    assert set(TABLE) == public_operations()


@pytest.mark.parametrize("name", FAST)
def test_the_reference_has_the_same_signature(name):
    reference = reference_of(name)
    assert reference is not None, f"{name} has no reference"
    ours = [p for p in parameters(operation(name)) if p not in HOW]
    assert [p for p in parameters(reference) if p not in HOW] == ours


@pytest.mark.parametrize("name", sorted(set(TABLE) - set(FAST)))
def test_an_operation_without_choice_of_implementation_is_its_own_specification(name):
    assert not TABLE[name].work


@pytest.mark.parametrize("name", FAST)
def test_work_is_declared(name):
    package = importlib.import_module(f"blocks.{name.partition('.')[0]}")
    assert TABLE[name].work in package.__all__
    declared = getattr(package, TABLE[name].work)
    returned = declared.__annotations__.get("return")
    assert returned is Work, f"{TABLE[name].work} returns {returned}"


@pytest.mark.parametrize("name", FAST)
def test_there_is_a_fast_path_on_the_cpu_and_a_kernel_or_torch(name):
    found = implementations(name)
    assert "reference" in found
    assert {"triton", "torch"} & set(found)


@pytest.mark.parametrize("name", FAST)
def test_implementations_agree(name):
    given = TABLE[name].make()
    expected = call(name, given, impl="reference")
    for impl in implementations(name):
        for ours, theirs in zip(call(name, given, impl=impl), expected, strict=True):
            if ours.is_floating_point():
                assert_close(ours, theirs, what=f"{name} {impl}", slack=TABLE[name].slack)
            else:
                assert torch.equal(ours, theirs), f"{name} {impl}"


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", TABLE)
def test_the_same_call_gives_the_same_bits(name):
    given = TABLE[name].make()
    for impl in implementations(name) if name in FAST else (None,):
        options = {} if impl is None else {"impl": impl}
        assert same_bits(call(name, given, **options), call(name, given, **options)), impl


@pytest.fixture
def poisoned_memory():
    """New memory holds NaN, or the largest integer, until somebody writes to it."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def left_unwritten(found: list[Tensor]) -> bool:
    return any(
        bool(t.isnan().any())
        if t.is_floating_point()
        else t.dtype != torch.bool and bool((t == torch.iinfo(t.dtype).max).any())
        for t in found
    )


@pytest.mark.parametrize("name", TABLE)
def test_all_of_a_result_is_written(name, poisoned_memory):
    given = TABLE[name].make()
    for impl in implementations(name) if name in FAST else (None,):
        found = call(name, given, **({} if impl is None else {"impl": impl}))
        assert not left_unwritten(found), f"{name} {impl}"


def test_memory_left_unwritten_is_noticed(poisoned_memory):
    def forgetful(x: Tensor, *, impl: str | None = None) -> Tensor:
        y = torch.empty_like(x)
        y[:-1] = x[:-1]
        return y

    assert left_unwritten([forgetful(torch.ones(3, 5))])
    assert left_unwritten([forgetful(torch.ones(3, dtype=torch.int64))])
    assert not left_unwritten([torch.ones(3, 5)])


@functools.cache
def _answers() -> dict[tuple[str, str, str], tuple[str, str]]:
    command = [sys.executable, "-m", "tests.contract_table"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        (a["operation"], a["parameter"], a["wrong"]): (a["kind"], a["message"])
        for a in json.loads(done.stdout)
    }


@pytest.mark.parametrize("name", TABLE)
def test_wrong_arguments_are_refused_in_the_words_of_the_house(name):
    """No tensor, no number, another dtype, another shape, another device: expected, got."""
    for parameter, wrong, _ in wrong_arguments(name):
        kind, message = _answers()[name, parameter, wrong]
        about = f"{name}({parameter}: {wrong}): {kind}: {message}"
        assert kind in ("TypeError", "ValueError"), about
        assert "expected" in message, about
        assert "got" in message, about
        if wrong in ("no tensor", "a list"):
            assert kind == "TypeError", about
            assert message.startswith(f"{parameter}: expected a tensor, got "), about


def test_wrong_arguments_are_drawn_for_every_tensor():
    entry = Operation(lambda: {"x": torch.ones(2), "n": 3, "ids": torch.ones(2, dtype=torch.int64)})
    given: dict[str, Any] = entry.make()
    assert len(tensors(list(given.values()))) == 2
    found = {(p, wrong) for p, wrong, _ in wrong_arguments("ops.linear")}
    assert {p for p, _ in found} == {"x", "weight", "bias"}
    assert ("window", "no number") in {(p, w) for p, w, _ in wrong_arguments("attention.prefill")}
    assert {w for _, w in found} == {"no tensor", "a list", "dtype", "shape", "device"}
