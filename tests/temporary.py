"""One folder for all that a run and its processes write for a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import get_temp_dir

import pytest


@contextmanager
def temporary_folder(name: str) -> Iterator[None]:
    """Within it every temporary file lies in one folder, which is removed in any case."""
    # Multiprocessing removes its own folder at the very end: it stays outside.
    get_temp_dir()
    with (
        tempfile.TemporaryDirectory(prefix=f"stablesr-{name}-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        yield
