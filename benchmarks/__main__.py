"""Tables of results, one a machine, as docs/performance.md has them; or a GPU's report.

    python -m benchmarks FILES
    python -m benchmarks --gpu --out FOLDER

Each file is what a command wrote with `--json FILE`. In brackets stands how many times as good a
figure is as that of the first variant of the same case: as fast, or as small. With `--gpu` the
parts of `benchmarks.gpu` run, and the folder gets one file of JSON and one table; the exit status
is 1 when a part failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.gpu import LIMIT_S, Sizes, report, small_sizes
from benchmarks.model import add_model, model_of
from benchmarks.report import tables
from benchmarks.results import Result


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--gpu", action="store_true", help="measure this machine's GPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu-report")))
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds in total")
    parser.add_argument("--small", action="store_true", help="sizes that a processor can do")
    add_model(parser, preset="stablesr-512")
    a = parser.parse_args()
    if a.gpu == bool(a.files):
        parser.error("give files with results, or --gpu.")
    if a.gpu:
        model = model_of(parser, a)
        result = report(small_sizes(model) if a.small else Sizes(model), a.out, a.limit)
        print(tables([result]))
        return 1 if result.failures else 0
    try:
        print(tables([Result.read(path) for path in a.files]))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


sys.exit(main())
