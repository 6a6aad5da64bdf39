"""`python -m tests.charts`: fetches what the chart's tests need, and runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.charts.tools import HELM, fetch

if __name__ == "__main__":
    if not HELM.exists():
        try:
            fetch()
        except subprocess.CalledProcessError as error:
            print(
                f"helm could not be fetched, and what needs it is skipped: {error}", file=sys.stderr
            )
    sys.exit(pytest.main([str(Path(__file__).parent), "--verbosity", "1"]))
