"""`python -m tests.kinds`: makes every kind of file, decodes it, compares, and prints the table.

Programs come from Debian (imagemagick, libtiff-tools, libavif-bin, libjpeg-turbo-progs, webp,
libjxl-tools, libopenjp2-tools), packages from PyPI into a temporary folder. `--before FOLDER`
decodes them with another checkout as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.kinds.newer import newer
from tests.kinds.older import older
from tests.kinds.sources import Variant
from tests.kinds.tools import PROGRAMS, install

ROOT = Path(__file__).parents[2]


def outcomes(files: dict[str, bytes], pages: dict[str, int], checkout: Path) -> dict[str, Path]:
    """By name what the product in a checkout makes of the files: a .npz, or a .txt that says no."""
    folder = Path(os.environ["KINDS"], str(len(list(Path(os.environ["KINDS"]).iterdir()))))
    folder.mkdir()
    (folder / "pages.json").write_text(json.dumps(pages))
    for name, data in files.items():
        (folder / f"{name}.in").write_bytes(data)
    path = f"{checkout}{os.pathsep}{checkout / 'client'}"
    program = Path(__file__).with_name("decode.py")
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", str(program), str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=checkout, stderr=subprocess.DEVNULL)
    return {
        name: folder / f"{name}.npz"
        if (folder / f"{name}.npz").exists()
        else folder / f"{name}.txt"
        for name in files
    }


def judge(variant: Variant, outcome: Path) -> tuple[bool, str]:
    """Whether it is as it should be, and in words."""
    if outcome.suffix == ".txt":
        text = outcome.read_text()
        is_right = variant.refusal != "" and text.startswith("refused") and variant.refusal in text
        return is_right, text if len(text) < 90 else text[:87] + "..."
    if variant.refusal:
        return False, "taken"
    found, expected = np.load(outcome), variant.expected()
    if found["pixels"].shape != expected.shape:
        return False, f"{found['pixels'].shape[1::-1]}, not {expected.shape[1::-1]}"
    # What is hidden may have any colour.
    difference = np.abs(found["pixels"] - expected) * (expected[..., 3:] > 0)
    difference[..., 3] = np.abs(found["pixels"] - expected)[..., 3]
    worst = float(difference.max()) * 255
    if worst > variant.tolerance or found["depth"] != variant.depth:
        return False, f"off by {worst:.1f} of 255, {found['depth']} bits"
    return True, f"right ({worst:.2f}, {found['depth']} bits)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kinds")
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--keep", type=Path, help="a folder for the files")
    parser.add_argument("--packages", type=Path, help="a folder for what is installed")
    options = parser.parse_args()
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        packages = " ".join(dict.fromkeys(PROGRAMS[program] for program in missing))
        parser.error(f"{', '.join(missing)} are missing: apt-get install {packages}")
    with TemporaryDirectory() as packages, TemporaryDirectory() as work:
        os.environ["KINDS"] = work
        install(options.packages or Path(packages))
        every = {f"{number:03}": variant for number, variant in enumerate([*older(), *newer()], 1)}
        files = {name: variant.data for name, variant in every.items()}
        if options.keep:
            options.keep.mkdir(exist_ok=True)
            for name, data in files.items():
                (options.keep / name).write_bytes(data)
        pages = {name: variant.page for name, variant in every.items()}
        after = outcomes(files, pages, ROOT)
        before = outcomes(files, pages, options.before) if options.before else None
        wrong = 0
        print("| kind | made by | before | after | held against |\n|---|---|---|---|---|")
        for name, variant in every.items():
            is_right, text = judge(variant, after[name])
            wrong += not is_right
            old = judge(variant, before[name])[1] if before else ""
            mark = "" if is_right else "**WRONG** "
            reference = variant.reference or "a refusal by name"
            print(f"| {variant.kind} | {variant.maker} | {old} | {mark}{text} | {reference} |")
    print(f"\n{len(every)} kinds, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
