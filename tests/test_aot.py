"""The ahead-of-time gate over all blocks, and the gate itself against planted faults."""

import dataclasses
import importlib
import json
import threading

import pytest

from tests import aot
from tests.aot import TARGETS, AotCase, AotReport, case_modules, check_report, compile_all
from tests.aot_coverage import kernels, uncovered

PLANTED = "tests.aot_planted"


def all_cases() -> list[AotCase]:
    return [case for m in case_modules() for case in importlib.import_module(m).CASES]


def only_on() -> dict[str, tuple[str, ...]]:
    """``ONLY_ON`` of the case files: kernels written for some chips alone, and those chips."""
    found: dict[str, tuple[str, ...]] = {}
    for module in case_modules():
        found |= getattr(importlib.import_module(module), "ONLY_ON", {})
    return found


def meant(module: str) -> list[str]:
    """Targets a case file has cases for."""
    cases = importlib.import_module(module).CASES
    return [t for t in TARGETS if any(t in case.targets for case in cases)]


@pytest.mark.parametrize(("module", "target"), [(m, t) for m in case_modules() for t in meant(m)])
def test_every_case_passes_the_gate(module, target):
    for report in compile_all(module, target).values():
        check_report(report)


def test_no_area_is_forgotten():
    assert {m.split(".")[1] for m in case_modules()} >= {"attention", "kv", "ops"}
    assert not any("bad" in module for module in case_modules())


def test_every_kernel_is_compiled_for_every_target():
    missing = uncovered(all_cases(), only_on=only_on())
    assert not missing, "kernels without an AotCase:\n" + "\n".join(missing)


def test_cases_and_exceptions_name_kernels_that_exist():
    named = {case.kernel for case in all_cases()} | set(only_on())
    assert named <= kernels(), f"not kernels of blocks: {sorted(named - kernels())}"


@pytest.mark.parametrize("fault", ["spills", "shared", "claims"])
def test_a_planted_fault_is_caught(fault):
    report = compile_all(PLANTED, "sm_80")[fault]
    others_fixed = {
        "spills": {"shared_bytes": 0, "claims": ()},
        "shared": {"spills": 0, "claims": ()},
        "claims": {"spills": 0, "shared_bytes": 0},
    }[fault]
    with pytest.raises(AssertionError, match=fault):
        check_report(dataclasses.replace(report, **others_fixed))


@pytest.mark.parametrize("target", TARGETS)
def test_a_sound_case_passes(target):
    report = compile_all(PLANTED, target)["sound"]
    check_report(report)
    assert report.claims == {"sm_80": ("HMMA", "LDGSTS"), "gfx942": ("v_mfma",)}.get(target, ())


def test_instructions_are_counted():
    opcodes = compile_all(PLANTED, "sm_80")["sound"].opcodes
    # a step is 64 x 64 x 32 in instructions of 16 x 8 x 16, shared by 4 warps
    assert opcodes["HMMA"] > 0
    assert opcodes["HMMA"] % 16 == 0


@pytest.mark.parametrize(("claim", "met"), [("v_mfma", True), ("v_mf", False), ("HGMMA", False)])
def test_a_claim_matches_whole_words(claim, met):
    opcodes = {"v_mfma_f32_16x16x16_bf16": 3, "HGMMAX": 1}
    report = AotReport("x", "gfx942", 1, 0, 0, opcodes, claims=(claim,))
    assert report.missing_claims() == ([] if met else [claim])


def plant(root, host: str, device: str) -> None:
    (root / "blocks/x/_triton").mkdir(parents=True)
    (root / "blocks/x/op.py").write_text(host)
    (root / "blocks/x/_triton/k.py").write_text(device)


DEVICE = """
@triton.jit
def helper(x):
    return x

@triton.jit
def _kernel(x):
    helper(x)
"""


@pytest.mark.parametrize(
    "host",
    [
        "def f():\n    from blocks.x._triton.k import _kernel\n    _kernel[(1,)]()",
        "from blocks.x._triton import k as other\nother._kernel[(1,)]()",
        "import blocks.x._triton.k as k\nk._kernel[(1,)]()",
        "import importlib\nimportlib.import_module('blocks.x._triton.k')",
    ],
    ids=["name", "module", "alias", "hidden"],
)
def test_a_kernel_without_a_case_is_found(tmp_path, host):
    plant(tmp_path, host, DEVICE)
    assert kernels(tmp_path) == {"blocks.x._triton.k:_kernel"}
    case = AotCase("x", "blocks.x._triton.k:_kernel", {}, {}, targets=("sm_80", "gfx942"))
    assert uncovered([case], root=tmp_path) == ["blocks.x._triton.k:_kernel on sm_90"]
    assert not uncovered([case], root=tmp_path, only_on={case.kernel: ("sm_80",)})


def test_host_code_is_not_taken_for_device_code(tmp_path):
    plant(tmp_path, "", DEVICE)
    launcher = "from blocks.x._triton.k import _kernel\ndef g():\n    _kernel[(1,)]()"
    (tmp_path / "blocks/x/_x_triton.py").write_text(launcher)
    assert kernels(tmp_path) == {"blocks.x._triton.k:_kernel"}


def test_a_helper_that_is_launched_too_needs_a_case(tmp_path):
    plant(tmp_path, "from blocks.x._triton.k import helper", DEVICE)
    assert kernels(tmp_path) == {f"blocks.x._triton.k:{name}" for name in ("_kernel", "helper")}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, "_store", lambda: tmp_path)
    return tmp_path


def test_a_change_of_source_or_choice_is_compiled_anew(store, monkeypatch):
    case = importlib.import_module("tests.attention.aot_cases").CASES[0]
    case = dataclasses.replace(case, claims=("HMMA",))
    path = aot._stored(case, "sm_90")
    assert path == aot._stored(dataclasses.replace(case, claims=("HGMMA",)), "sm_90")
    uncounted = dataclasses.replace(case, claims=(), counted=False)
    assert path != aot._stored(uncounted, "sm_90"), "its instructions were not read"
    assert path != aot._stored(dataclasses.replace(case, num_warps=16), "sm_90")
    assert path != aot._stored(case, "sm_80")
    names = {p.name for p in aot._sources("blocks.attention._triton.decode")}
    assert {"decode.py", "softmax.py"} <= names, "a kernel's helpers count as its source"
    sources = aot._sources
    monkeypatch.setattr(aot, "_sources", lambda m: sources(m) | sources("tests.aot_planted"))
    assert path != aot._stored(case, "sm_90")


def test_processes_share_the_work(store, monkeypatch):
    """Two at once: every case is compiled by one of them, and both return when all are there."""
    compiled = []

    def pretend(case, target):
        compiled.append(case.name)
        threading.Event().wait(0.05)
        return AotReport(case.name, target, 1, 0, 0, {"HMMA": 2})

    monkeypatch.setattr(aot, "compile_case", pretend)
    both = [threading.Thread(target=aot.compile_missing, args=(PLANTED, "sm_80")) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(compiled) == ["claims", "shared", "sound", "spills"]
    found = [json.loads(path.read_text())["name"] for path in store.glob("*.json")]
    assert sorted(found) == sorted(compiled)


def test_one_case_that_does_not_compile_is_named_and_the_others_are_kept(store, monkeypatch):
    def refuse(case, target):
        if case.name == "shared":
            raise ValueError("no such tile")
        return AotReport(case.name, target, 1, 0, 0)

    monkeypatch.setattr(aot, "compile_case", refuse)
    with pytest.raises(RuntimeError, match=r"shared on sm_80:[\s\S]*no such tile"):
        aot.compile_missing(PLANTED, "sm_80")
    assert len(list(store.glob("*.json"))) == 3
