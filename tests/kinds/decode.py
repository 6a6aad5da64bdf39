"""Decodes the files of a folder with the product on PYTHONPATH: what it gives, or says."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import numpy as np

from jobs.errors import ImageError
from jobs.formats import examine
from worker.images import decode


def main() -> None:
    folder = Path(sys.argv[1])
    pages = json.loads((folder / "pages.json").read_text())
    for path in sorted(folder.glob("*.in")):
        data = path.read_bytes()
        page = {"page": pages[path.stem]} if pages[path.stem] else {}
        # An earlier build knows no pages.
        if "page" not in inspect.signature(decode).parameters:
            page = {}
        stage = "refused"
        try:
            examine(data, 10**6, **page)
            stage = "fails"
            image = decode(data, 10**6, **page)
        except ImageError as error:
            path.with_suffix(".txt").write_text(f"{stage}: {error.detail}")
            continue
        alpha = np.ones_like(image.rgb[:, :1]) if image.alpha is None else image.alpha
        planes = np.concatenate([image.rgb[0], alpha[0]]).astype(np.float64)
        np.savez(path.with_suffix(".npz"), pixels=np.moveaxis(planes, 0, -1), depth=image.depth)


if __name__ == "__main__":
    main()
