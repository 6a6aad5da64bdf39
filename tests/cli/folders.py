"""What the tests of whole folders share: the command, and a model in place of the real one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typer.testing import CliRunner, Result

from cli.local import Written
from cli.main import app
from cli.view import Moment
from jobs.settings import Settings
from models.parameters import UpscaleParameters

__all__ = ["StubModel", "names", "upscale"]

runner = CliRunner()


class StubModel:
    """In place of the real one: writes at once, and remembers what it was asked for."""

    loaded = 0
    asked: ClassVar[list[tuple[str, UpscaleParameters]]] = []
    broken: ClassVar[dict[str, Exception]] = {}

    def __init__(self, settings: Settings) -> None:
        StubModel.loaded += 1

    def upscale(
        self, source: Path, targets: Mapping[int, Path], parameters: UpscaleParameters, show: Any
    ) -> list[Written]:
        [target] = targets.values()
        self.asked.append((source.name, parameters))
        show(Moment("denoise", 0.5, 1, 4))
        if source.name in self.broken:
            raise self.broken[source.name]
        content = b"upscaled " + source.read_bytes()
        target.write_bytes(content)
        return [Written(32, 24, len(content))]


def upscale(source: Path, out: Path, *options: str) -> Result:
    result = runner.invoke(app, ["upscale", str(source), str(out), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def names(folder: Path) -> list[str]:
    """The results; what begins with a dot is no result."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(f.relative_to(folder).as_posix() for f in files if not f.name.startswith("."))
