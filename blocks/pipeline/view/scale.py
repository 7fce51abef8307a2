"""Numbers for people: round steps of an axis, times and bytes in fitting units."""

import math

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def round_step(span: float, num_steps: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that covers ``span`` in ``num_steps`` steps.

    >>> round_step(95, 10), round_step(0.7, 4)
    (10.0, 0.2)
    """
    least = span / num_steps
    power = 10.0 ** math.floor(math.log10(least))
    steps = (factor * power for factor in (1, 2, 5, 10))
    return float(f"{next(step for step in steps if step >= least * (1 - 1e-9)):.1g}")


def ticks(span: float, num_steps: int) -> list[float]:
    """Round numbers from 0 to ``span``.

    >>> ticks(9, 4)
    [0.0, 5.0]
    """
    if span <= 0:
        return [0.0]
    step = round_step(span, num_steps)
    return [float(f"{at * step:.12g}") for at in range(math.floor(span / step + 1e-9) + 1)]


def unit_of(span: float, unit: str) -> tuple[float, str]:
    """The unit to show times up to ``span`` in: its size, and its name.

    >>> unit_of(0.25, "s"), unit_of(30, "")
    ((0.001, 'ms'), (1.0, ''))
    """
    if unit != "s":
        return 1.0, unit
    return next(((size, name) for size, name in _TIMES if span >= size), _TIMES[-1])


def time_text(time: float, unit: str) -> str:
    """
    >>> time_text(0.0123456, "s"), time_text(31, ""), time_text(0.0, "s")
    ('12.35 ms', '31', '0 s')
    """
    size, name = unit_of(abs(time), unit) if time else (1.0, unit)
    return f"{time / size:.4g} {name}".strip()


def bytes_text(num_bytes: float) -> str:
    """
    >>> bytes_text(1536), bytes_text(3 << 30), bytes_text(1000)
    ('1.5 KiB', '3 GiB', '1000 B')
    """
    for name in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {name}" if num_bytes >= 100 else f"{num_bytes:.3g} {name}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"
