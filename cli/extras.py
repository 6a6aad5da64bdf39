"""Which optional parts of the package are installed."""

from __future__ import annotations

import importlib.util

from cli.errors import NotInstalled

__all__ = ["require_torch", "require_training"]


def require_torch(
    purpose: str = "Upscaling on this machine", instead: str = ", or give a server with --server"
) -> None:
    """Ends with the extra's name when this environment cannot run a model.

    Args:
        purpose: what needs it, for the message.
        instead: what a person could do without.

    Raises:
        NotInstalled: torch, diffusers, pyvips or safetensors is missing.
    """
    missing = [
        name
        for name in ("torch", "diffusers", "pyvips", "safetensors")
        if not importlib.util.find_spec(name)
    ]
    if missing:
        raise NotInstalled(
            f"{purpose} needs {', '.join(missing)}: install them with "
            f'`pip install "stablesr-server[worker]"`{instead}.'
        )


def require_training() -> None:
    """Ends with the extra's name when this environment cannot train.

    Raises:
        NotInstalled: accelerate or tensorboard is missing, or what `require_torch` asks for.
    """
    require_torch("Training", instead="")
    missing = [n for n in ("accelerate", "tensorboard") if not importlib.util.find_spec(n)]
    if missing:
        raise NotInstalled(
            f"Training needs {', '.join(missing)}: install them with "
            '`pip install "stablesr-server[train]"`.'
        )
