"""Ahead-of-time compilation of Triton kernels for chips that are not here.

A case file lists ``AotCase`` records in ``CASES``. ``compile_all`` compiles them for one target in
a fresh process (the interpreter's environment variable is decided at import) and returns what
the compilers say of each: registers, spills, shared memory, and instructions named in the code.

    python -m tests.aot tests.attention.aot_cases sm_90      # the same, printed as JSON lines
"""

import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

TARGETS = ("sm_80", "sm_90", "gfx942")
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}
"""Shared memory one program may use [bytes]."""


@dataclasses.dataclass(frozen=True)
class AotCase:
    """One kernel with one set of compile-time choices.

    name: unique and readable, becomes the test id.
    kernel: ``module:attribute`` of the jit function.
    signature: run-time arguments in order, name to Triton type (``*bf16``, ``i32``, ``fp32``).
    constexprs: compile-time arguments, name to value; a None argument belongs here too.
    aligned: run-time arguments known to be divisible by 16, as launches find them.
    num_warps: warps of one program.
    num_stages: software pipeline depth.
    targets: chips the choice is meant for.
    """

    name: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    targets: tuple[str, ...] = TARGETS


@dataclasses.dataclass(frozen=True)
class AotReport:
    """What the compiler reported: registers a thread, spilled registers or bytes, shared bytes."""

    name: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    opcodes: tuple[str, ...] = ()


@functools.cache
def compile_all(case_module: str, target: str) -> dict[str, AotReport]:
    """Compile all cases of ``case_module`` for ``target``; reports by case name."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.aot", case_module, target]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    reports = [AotReport(**json.loads(line)) for line in done.stdout.splitlines()]
    return {report.name: report for report in reports}


def check_report(report: AotReport) -> None:
    """Assert the house rule: nothing spilled, shared memory within the chip's limit."""
    limit = SHARED_LIMIT[report.target]
    assert report.spills == 0, f"{report.name} on {report.target} spills: {report}"
    assert report.shared_bytes <= limit, (
        f"{report.name} needs {report.shared_bytes} B of shared memory, {report.target} has {limit}"
    )


def compile_case(case: AotCase, target: str) -> AotReport:
    """Compile one case for one target in this process (TRITON_INTERPRET must be unset)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, attribute = case.kernel.split(":")
    kernel = getattr(importlib.import_module(module), attribute)
    names = [p.name for p in kernel.params]
    missing = set(names) - set(case.signature) - set(case.constexprs)
    unknown = (set(case.signature) | set(case.constexprs)) - set(names)
    if missing or unknown:
        raise ValueError(f"{case.name}: arguments missing {missing}, unknown {unknown}")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(kernel, signature, constexprs=dict(case.constexprs), attrs=attrs)
    gpu = (
        GPUTarget("hip", target, 64)
        if target.startswith("gfx")
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=gpu, options=options)
    read = _read_amd if target.startswith("gfx") else _read_nvidia
    return read(case.name, target, compiled)


def _read_amd(name: str, target: str, compiled: Any) -> AotReport:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        return max((int(n) for n in re.findall(rf"\.{key}:\s*(\d+)", text)), default=0)

    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    opcodes = tuple(sorted(set(re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE))))
    return AotReport(name, target, number("vgpr_count"), spills, compiled.metadata.shared, opcodes)


def _read_nvidia(name: str, target: str, compiled: Any) -> AotReport:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("-res-usage", cubin.name)
        sass = _cuobjdump("-sass", cubin.name)
    numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", sass, re.M)
    spilled = sum(op in ("STL", "LDL") for op in opcodes)
    spills = numbers["STACK"] + numbers["LOCAL"] + spilled
    return AotReport(
        name,
        target,
        numbers["REG"],
        spills,
        compiled.metadata.shared,
        tuple(sorted(set(opcodes))),
    )


def _cuobjdump(flag: str, path: str) -> str:
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout


def main() -> None:
    case_module, target = sys.argv[1:]
    for case in importlib.import_module(case_module).CASES:
        if target in case.targets:
            print(json.dumps(dataclasses.asdict(compile_case(case, target))), flush=True)


if __name__ == "__main__":
    main()
