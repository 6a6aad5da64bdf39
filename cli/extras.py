"""Which optional parts of the package are installed."""

from __future__ import annotations

import importlib.util

from cli.errors import NotInstalled

__all__ = ["require_torch"]


def require_torch() -> None:
    """Ends with the extra's name when this environment cannot run a model.

    Raises:
        NotInstalled: torch, diffusers or safetensors is missing.
    """
    missing = [
        name for name in ("torch", "diffusers", "safetensors") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise NotInstalled(
            f"Upscaling on this machine needs {', '.join(missing)}: install them with "
            '`pip install "stablesr-server[worker]"`, or give a server with --server.'
        )
