"""What a model folder holds and what it takes to run it: ``python -m recipes.model FOLDER``."""

import argparse
import dataclasses
import re
import sys

import torch

from recipes.model.bundled import bundled_model
from recipes.model.config import ModelConfig
from recipes.model.decoder import Decoder
from recipes.model.weights import check_weights, read_config

DESCRIPTION = (
    "Check a model folder, and say what it holds and what it takes to run it: parameters, bytes of "
    "weights and of the key-value cache."
)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(text: str) -> int:
    """``512M``, ``1.5GiB`` or a plain number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 512M or 2GiB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def shown_bytes(number: int) -> str:
    """A size with the unit that suits it."""
    for unit in ("T", "G", "M", "K"):
        if number >= UNITS[unit]:
            return f"{number / UNITS[unit]:.1f} {unit}iB"
    return f"{number} B"


def describe(config: ModelConfig, dtype: torch.dtype, kv_budget: int | None) -> list[str]:
    """Lines that tell size and shape of a model, and how much context a KV budget holds."""
    parameters = sum(p.numel() for p in Decoder(config, device="meta").parameters())
    per_token = config.kv_bytes_per_token(dtype.itemsize)
    weights = parameters * dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    full = per_token * config.max_positions
    lines = [
        f"parameters   {parameters:,}",
        f"weights      {shown_bytes(weights)} in {name}",
        f"KV cache     {shown_bytes(per_token)} a token in {name}",
        f"context      {config.max_positions:,} tokens, {shown_bytes(full)} of KV cache when full",
    ]
    if kv_budget is not None:
        tokens = kv_budget // per_token
        full_contexts = tokens / config.max_positions
        lines.append(
            f"KV budget    {shown_bytes(kv_budget)} holds {tokens:,} tokens: "
            f"{full_contexts:,.2f} full contexts, or {tokens // 1024:,} of 1,024 tokens"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.model", description=DESCRIPTION)
    parser.add_argument(
        "folder", nargs="?", help="a Hugging Face folder (default: the bundled one)"
    )
    budget = "how much context fits in so many bytes, such as 2GiB"
    parser.add_argument("--kv-budget", type=parse_bytes, help=budget)
    kinds = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=kinds, help="to count in (default: the folder's)")
    options = parser.parse_args()
    try:
        folder = options.folder or bundled_model()
        config = read_config(folder)
        check_weights(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            print(f"{field.name} = {value}")
    print()
    dtype = getattr(torch, options.dtype or config.dtype)
    print("\n".join(describe(config, dtype, options.kv_budget)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
