"""Measure the matrix and print it; see ``benches.matrix``."""

import argparse
import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton at import, so set it first

from benches import dated, machine
from benches.matrix import rows, table
from benches.matrix.row import Setting
from benches.matrix.run import measure_all, serve


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.matrix", description="Measure the matrix.")
    parser.add_argument("--only", default="", help="ids that begin so, comma separated (D1,N)")
    parser.add_argument("--tiny", action="store_true", help="small shapes: shows that it runs")
    parser.add_argument("--again", action="store_true", help="also rows this day's file holds")
    parser.add_argument("--budget", type=float, default=3000, help="seconds for all rows")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a row")
    parser.add_argument("--write", action="store_true", help="put the saved table in the README")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    setting = Setting(machine.default_device(), options.tiny)
    chosen = [r for r in rows() if r.id.startswith(tuple(options.only.split(",")))]
    if not chosen:
        parser.error(f"--only: expected the beginning of a row's id, got {options.only!r}")
    if options.serve:
        serve(chosen, setting)
        return 0
    measuring = options.tiny or setting.device.type == "cuda"
    results = dated.open_file(machine.environment()) if measuring and not options.tiny else None
    items = {} if results is None else results.part("matrix")

    def keep(row_id: str, item: dict) -> None:
        items[row_id] = item
        if results is not None:
            results.put("matrix", row_id, item)
        print(table.line(next(r for r in chosen if r.id == row_id), item), flush=True)

    if measuring:
        done = () if options.again else [i for i, item in items.items() if "value" in item]
        command = [sys.executable, "-m", "benches.matrix", "--serve", *["--tiny"] * options.tiny]
        left = [row.id for row in chosen if row.id not in done]
        measure_all(left, command, budget_s=options.budget, limit_s=options.limit, keep=keep)
    else:
        print("\n".join(table.lines(chosen, {})))
    if options.write:
        print(f"wrote {dated.write_readme()}")
    failed = [row_id for row_id, item in items.items() if item["status"] == "failed"]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
