"""What else than workers an arrival rate needs: how many of each, and so what breaks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from tools.capacity.devices import SIZES
from tools.capacity.simulation import Outcome

POLL_S = 2.0
"""How often a client asks for its job, who does not wait by events. An assumption"""
# Bytes of a pixel of a photograph as JPEG, and as PNG.
JPEG, PNG = 0.5, 2.2


@dataclass(frozen=True)
class Part:
    """Something of which one does so much, and an image and a poll need so much of it."""

    name: str
    image: float
    poll: float
    most: float
    origin: str


_PIXELS = sum(share * side**2 for side, share in SIZES)
PARTS = (
    Part(
        "service processes (processor s)",
        0.0060 + 0.0030,
        0.0017,
        0.8,
        "POST, GET as docs/performance.md, a result 3 ms by assumption; 80 % of a core",
    ),
    Part("Redis (processor s)", 0.0010 + 0.0012, 0.00019, 0.8, "`--measure`; 80 % of a core"),
    Part(
        "image store (requests)",
        6,
        0,
        3500,
        "in, out, twice each, and two removals; S3 takes 3,500 writes a second of a prefix",
    ),
    Part(
        "the store's line (bytes)",
        2 * _PIXELS * (JPEG + 16 * PNG),
        0,
        10e9 / 8,
        "each way once; 10 Gbit/s",
    ),
)


def limits(ends: Mapping[str, Sequence[tuple[float, Outcome]]]) -> Table:
    """Of each curve, at its highest rate, with the most jobs that the simulations had at once on
    average."""
    table = Table(title="How many of each the highest rate needs")
    for name in ("part", *ends, "one does"):
        table.add_column(name, justify="left" if name in ("part", "one does") else "right")
    for part in PARTS:
        cells = []
        for outcomes in ends.values():
            images = max(rate for rate, _ in outcomes)
            polls = max(max(o.in_system, o.most_waiting) for _, o in outcomes) / POLL_S
            cells.append(f"{(images * part.image + polls * part.poll) / part.most:.2f}")
        table.add_row(part.name, *cells, part.origin)
    return table
