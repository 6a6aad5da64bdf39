"""What the tests of whole folders share: the command, and a model in place of the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from typer.testing import CliRunner, Result

from cli.main import app
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from stablesr_client import Progress

runner = CliRunner()
NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")


class StubModel:
    """In place of the real one: writes at once, and remembers what it was asked for."""

    count = 0
    requests: ClassVar[list[tuple[str, UpscaleParameters]]] = []
    errors: ClassVar[dict[str, Exception]] = {}

    def __init__(self, settings: Settings, decode_tile: int | None) -> None:
        StubModel.count += 1

    def upscale(
        self, source: Path, targets: Mapping[int, Path], parameters: UpscaleParameters, show: Any
    ) -> tuple[int, int]:
        [target] = targets.values()
        self.requests.append((source.name, parameters))
        show(Progress(stage="denoise", fraction=0.5, step=1, steps=4))
        if source.name in self.errors:
            raise self.errors[source.name]
        target.write_bytes(b"upscaled " + source.read_bytes())
        return 32, 24


def upscale(source: Path, out: Path, *options: str) -> Result:
    result = runner.invoke(app, ["upscale", str(source), str(out), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def names(folder: Path) -> list[str]:
    """The results; what begins with a dot is no result."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(f.relative_to(folder).as_posix() for f in files if not f.name.startswith("."))


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def last_states(out: Path) -> dict[str, str]:
    """The last state of each image in the journal."""
    lines = [json.loads(line) for line in (out / ".stablesr.jsonl").read_text().splitlines()]
    return {line["input"]: line["state"] for line in lines if "input" in line}


def results(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name != ".stablesr.jsonl")
