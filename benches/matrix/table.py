"""The matrix as a table: measured, targets, peers, or the reason why not."""

from typing import Any

from benches.matrix.row import Row

HEAD = [
    "| row | kernel and shape | measured | stage 1 | stage 2 | | ours over peers |",
    "|---|---|---|---|---|---|---|",
]
NO_DEVICE = {"status": "not measured", "reason": "no accelerator"}


def lines(rows: list[Row], items: dict[str, dict[str, Any]]) -> list[str]:
    """One line a row; rows without an item are listed as not measured."""
    return [*HEAD, *(line(row, items.get(row.id, NO_DEVICE)) for row in rows)]


def line(row: Row, item: dict[str, Any]) -> str:
    sign = "<=" if row.reaches(0.0, 1.0) else ">="
    targets = [f"{sign} {shown(target, row.unit)}" for target in (row.stage1, row.stage2)]
    if "value" in item:
        figure = shown(item["value"], row.unit)
        cells = [figure, *targets, item["status"], peers(row, item)]
    else:
        reason = item["reason"].replace("|", "/")
        cells = [f"{item['status']}: {reason}", *targets, "", wanted(row)]
    return "| " + " | ".join([row.id, row.what, *cells]) + " |"


def shown(value: float, unit: str) -> str:
    """A figure with its unit.

    >>> shown(91.26, "% copy"), shown(0.5431, "x time"), shown(7.5, "us")
    ('91% copy', '0.54x time', '7.5 us')
    """
    if unit.startswith("%"):
        return f"{value:.0f}{unit}"
    if unit.startswith("x "):
        return f"{value:.2f}{unit}"
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def peers(row: Row, item: dict[str, Any]) -> str:
    """Ratios that were measured, the least wanted beside them; then what was wanted and missing."""
    found = [
        f"{name} {ratio:.2f}" + (f" (>= {least:g})" if (least := _least(row, name)) else "")
        for name, ratio in item["ratios"].items()
    ]
    absent = [
        f"{name}: {_reason(name, item['missing'])}"
        for name in row.peers
        if not any(peer.startswith(name) for peer in item["ratios"])
    ]
    return "; ".join([*found, *absent])


def wanted(row: Row) -> str:
    return "; ".join(f"{name} >= {least:g}" for name, least in row.peers.items())


def _least(row: Row, name: str) -> float | None:
    return next((least for peer, least in row.peers.items() if name.startswith(peer)), None)


def _reason(name: str, missing: dict[str, str]) -> str:
    found = next((why for peer, why in missing.items() if peer.startswith(name)), "not there")
    return found.replace("|", "/")
