"""Ahead-of-time compilation of Triton kernels for chips that are not here.

A case file lists ``AotCase`` records in ``CASES``. ``compile_all`` compiles them for one target in
processes of their own (``tests.aot_apart``) and returns what the compilers say of each: registers,
spills, shared memory, and how often each instruction occurs.
``check_report`` is the gate: nothing spilled, shared memory within the chip's, and every
instruction that the case claims is there.

Reports are kept under ``$LLM_BLOCKS_CACHE/aot`` (default ``~/.cache/llm-blocks/aot``) by a digest
of the case, the triton version, the kernel's source and that of everything it imports from
``blocks``, so a second run compiles only what changed. Any number of processes may compile at once:
each takes a case nobody else is at.

    python -m tests.aot                                        # every area and target, as a table
    python -m tests.aot tests.attention.aot_cases sm_90        # one
"""

import argparse
import ast
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.aot_apart import ROOT, compile_apart

TARGETS = ("sm_80", "sm_90", "gfx942")
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}
"""Shared memory one program may use [bytes]."""


@dataclasses.dataclass(frozen=True)
class AotCase:
    """One kernel with one set of compile-time choices.

    name: unique for a target and readable, becomes the test id.
    kernel: ``module:attribute`` of the jit function.
    signature: run-time arguments in order, name to Triton type (``*bf16``, ``i32``, ``fp32``).
    constexprs: compile-time arguments, name to value; a None argument belongs here too.
    aligned: run-time arguments known to be divisible by 16, as launches find them.
    num_warps: warps of one program.
    num_stages: software pipeline depth.
    targets: chips the choice is meant for.
    claims: instructions that must be in the compiled code (``HGMMA`` wgmma, ``UTMALDG`` bulk tensor
        load, ``LDGSTS`` asynchronous copy, ``USETMAXREG`` warp specialisation, ``IMMA`` int8 and
        ``QGMMA`` fp8 product, ``v_mfma`` on gfx942): a tuple for every target of the case, or a
        mapping from target to tuple. A claim also matches an instruction it begins, up to a ``_``.
    options: further compiler options (``maxnreg``).
    counted: whether its instructions are counted although none is claimed.
    """

    name: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    targets: tuple[str, ...] = TARGETS
    claims: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    counted: bool = False

    def claims_on(self, target: str) -> tuple[str, ...]:
        """Instructions claimed on ``target``."""
        if isinstance(self.claims, Mapping):
            return tuple(self.claims.get(target, ()))
        return self.claims


@dataclasses.dataclass(frozen=True)
class AotReport:
    """What the compiler reported of one case on one target.

    registers: a thread's, as allocated at launch.
    spills: bytes of stack and spilled registers; 0 is the only good number.
    shared_bytes: of one program.
    opcodes: instruction to the number of times it occurs in the code; on NVIDIA chips, where the
        disassembler takes a third of the time, only where instructions are claimed or ``counted``.
    claims: instructions the case says are there.
    """

    name: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    opcodes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    claims: tuple[str, ...] = ()

    def missing_claims(self) -> list[str]:
        """Claimed instructions that do not occur."""
        return [
            claim
            for claim in self.claims
            if not any(op == claim or op.startswith(f"{claim}_") for op in self.opcodes)
        ]


@functools.cache
def compile_all(case_module: str, target: str) -> dict[str, AotReport]:
    """Compile all cases of ``case_module`` for ``target``; reports by case name."""
    cases = _cases(case_module, target)
    missing = [case for case in cases if not _stored(case, target).exists()]
    if missing:
        # under pytest-xdist the other workers compile at the same time
        workers = 1 if "PYTEST_XDIST_WORKER" in os.environ or len(missing) < 4 else 2
        compile_apart(case_module, target, workers)
    reports = {}
    for case in cases:
        found = json.loads(_stored(case, target).read_text())
        reports[case.name] = AotReport(**found, claims=case.claims_on(target))
    if len(reports) != len(cases):
        raise ValueError(f"{case_module}: two cases for {target} share a name")
    return reports


def check_report(report: AotReport) -> None:
    """Assert the house rule: nothing spilled, shared memory within the chip's, claims met."""
    limit = SHARED_LIMIT[report.target]
    where = f"{report.name} on {report.target}"
    found = f"{report.registers} registers, {report.spills} spilled, {report.shared_bytes} B shared"
    assert report.spills == 0, f"{where} spills: {found}"
    assert report.shared_bytes <= limit, (
        f"{where} needs {report.shared_bytes} B of shared memory, {report.target} has {limit}"
    )
    missing = report.missing_claims()
    assert not missing, f"{where} claims {missing}, found {sorted(report.opcodes)}"


def _cases(case_module: str, target: str) -> list[AotCase]:
    cases = importlib.import_module(case_module).CASES
    return [case for case in cases if target in case.targets]


def _is_counted(case: AotCase, target: str) -> bool:
    return case.counted or bool(case.claims_on(target))


def _stored(case: AotCase, target: str) -> Path:
    """Where the report of a case is kept."""
    what = {
        field.name: getattr(case, field.name)
        for field in dataclasses.fields(case)
        if field.name not in ("targets", "claims")
    }
    what["counted"] = _is_counted(case, target)
    what |= {name: sorted(what[name].items()) for name in ("constexprs", "options")}
    what["signature"] = list(case.signature.items())
    seen = hashlib.sha256(repr((importlib.metadata.version("triton"), target, what)).encode())
    seen.update(_reader())
    for path in sorted(_sources(case.kernel.partition(":")[0])):
        seen.update(path.read_bytes())
    return _store() / f"{seen.hexdigest()[:32]}.json"


@functools.cache
def _store() -> Path:
    default = Path.home() / ".cache" / "llm-blocks"
    path = Path(os.environ.get("LLM_BLOCKS_CACHE", default)) / "aot"
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _reader() -> bytes:
    """The code that compiles a case and reads what came out."""
    parts = (compile_case, _source_type, _read_amd, _read_nvidia, _count)
    return "".join(map(inspect.getsource, parts)).encode()


@functools.cache
def _sources(module: str) -> frozenset[Path]:
    """The file of ``module`` and of every module of ``blocks`` it imports, directly or not."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = ROOT.joinpath(*waiting.pop().split(".")).with_suffix(".py")
        if not path.exists() or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(found)


def compile_missing(case_module: str, target: str) -> None:
    """Compile and store what is not stored yet; cases another process is at come last.

    Raises:
        RuntimeError: those that do not compile, by name; the others are stored.
    """
    waiting = _cases(case_module, target)
    failures = []
    for flags in (fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX):
        busy = []
        for case in waiting:
            path = _stored(case, target)
            with open(path.with_suffix(".lock"), "w") as lock:
                try:
                    fcntl.flock(lock, flags)
                except BlockingIOError:
                    busy.append(case)
                    continue
                if not path.exists():
                    try:
                        _write(path, compile_case(case, target))
                    except Exception:  # the others are compiled all the same
                        failures.append(f"{case.name} on {target}:\n{traceback.format_exc()}")
        waiting = busy
    if failures:
        raise RuntimeError("\n".join(failures))


def kept_report(case: AotCase, target: str) -> AotReport:
    """The report of one case, compiled in this process where none is kept."""
    path = _stored(case, target)
    if not path.exists():
        _write(path, compile_case(case, target))
    return AotReport(**json.loads(path.read_text()), claims=case.claims_on(target))


def _write(path: Path, report: AotReport) -> None:
    found = dataclasses.asdict(report)
    del found["claims"]
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(found))
    scratch.replace(path)


def compile_case(case: AotCase, target: str) -> AotReport:
    """Compile one case for one target in this process (TRITON_INTERPRET must be unset)."""
    import triton
    from triton.backends.compiler import GPUTarget

    module, attribute = case.kernel.split(":")
    kernel = getattr(importlib.import_module(module), attribute)
    names = [p.name for p in kernel.params]
    missing = set(names) - set(case.signature) - set(case.constexprs)
    unknown = (set(case.signature) | set(case.constexprs)) - set(names)
    if missing or unknown:
        raise ValueError(f"{case.name}: arguments missing {missing}, unknown {unknown}")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = _source_type(kernel)(kernel, signature, constexprs=dict(case.constexprs), attrs=attrs)
    gpu = (
        GPUTarget("hip", target, 64)
        if target.startswith("gfx")
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    compiled = triton.compile(source, target=gpu, options=options)
    if target.startswith("gfx"):
        return _read_amd(case.name, target, compiled)
    return _read_nvidia(case.name, target, compiled, _is_counted(case, target))


def _source_type(kernel: Any) -> Any:
    from triton.compiler import ASTSource

    if type(kernel).__name__ != "GluonJITFunction":
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def _count(opcodes: list[str]) -> dict[str, int]:
    return {opcode: opcodes.count(opcode) for opcode in sorted(set(opcodes))}


def _read_amd(name: str, target: str, compiled: Any) -> AotReport:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        return max((int(n) for n in re.findall(rf"\.{key}:\s*(\d+)", text)), default=0)

    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    opcodes = _count(re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE))
    return AotReport(name, target, number("vgpr_count"), spills, compiled.metadata.shared, opcodes)


def _read_nvidia(name: str, target: str, compiled: Any, counted: bool) -> AotReport:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        text = _cuobjdump("-res-usage", *(["-sass"] if counted else []), cubin.name)
    numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", text, re.M)
    spilled = sum(op in ("STL", "LDL") for op in opcodes)
    spills = numbers["STACK"] + numbers["LOCAL"] + spilled
    shared = compiled.metadata.shared
    return AotReport(name, target, numbers["REG"], spills, shared, _count(opcodes))


def _cuobjdump(*arguments: str) -> str:
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def case_modules() -> list[str]:
    """Every case file of the suite, ``tests.<area>.aot_*`` with a list ``CASES`` meant to pass."""
    files = [path for path in sorted(ROOT.glob("tests/*/aot_*.py")) if "bad" not in path.stem]
    holds = re.compile(r"^CASES\b", re.MULTILINE)
    return [f"tests.{p.parent.name}.{p.stem}" for p in files if holds.search(p.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.aot", description="Compile ahead of time.")
    parser.add_argument("module", nargs="?", help="default: every area")
    parser.add_argument("target", nargs="?", choices=TARGETS, help="default: every target")
    options = parser.parse_args()
    bad = 0
    for module in [options.module] if options.module else case_modules():
        for target in [options.target] if options.target else TARGETS:
            for report in compile_all(module, target).values():
                verdict = "ok"
                try:
                    check_report(report)
                except AssertionError as error:
                    verdict, bad = str(error), bad + 1
                counted = " ".join(f"{op} {report.opcodes.get(op, 0)}" for op in report.claims)
                print(
                    f"{module.split('.')[1]:10} {target:7} {report.name:40} "
                    f"{report.registers:4} registers {report.shared_bytes:7} B shared  "
                    f"{counted:20} {verdict}",
                    flush=True,
                )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
