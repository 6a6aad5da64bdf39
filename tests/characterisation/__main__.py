"""python -m tests.characterisation [--freeze]: are the sixty results what they were?

To the bit on a machine like the one they were frozen on. Elsewhere the last bit of a float32 may
differ, and with it a level here and there: there the sizes and the means of blocks are compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from .results import FROZEN, Result, frozen, machine, results

TOLERANCE = 0.5
"""Of a block's mean, in levels of 255."""


def main() -> None:
    with TemporaryDirectory() as folder:
        now = dict(results(Path(folder)))
    if "--freeze" in sys.argv[1:]:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(now[name])}" for name in now)
        FROZEN.write_text(f'{{"machine": {json.dumps(machine())}, "results": {{\n{lines}\n}}}}\n')
        print(f"{len(now)} results are in {FROZEN}.")
        return
    where, before = frozen()
    same_machine = machine() == where
    changes = [
        name
        for name in sorted(before.keys() | now.keys())
        if name not in before
        or name not in now
        or (before[name] != now[name] if same_machine else differ(before[name], now[name]))
    ]
    exact = sum(before.get(name) == now[name] for name in now)
    print(
        f"{exact} of {len(before)} results are equal to the bit; frozen with {where}, "
        f"this is {machine()}."
    )
    if changes:
        sys.exit("These changed: " + "; ".join(changes) + ".")


def differ(before: Result, now: Result) -> bool:
    """Whether more than rounding lies between the two."""
    pairs = zip(before["means"], now["means"], strict=False)
    return before["shape"] != now["shape"] or any(abs(a - b) > TOLERANCE for a, b in pairs)


main()
