"""Which optional parts of the package are installed."""

from __future__ import annotations

import importlib.util

from cli.errors import NotInstalled

__all__ = ["require_evaluation", "require_torch", "require_training"]


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


def _require(what: str, modules: tuple[str, ...], extra: str) -> None:
    require_torch(what, instead="")
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    if missing:
        raise NotInstalled(
            f"{what} needs {', '.join(missing)}: install them with "
            f'`pip install "stablesr-server[{extra}]"`.'
        )


def require_training() -> None:
    """Ends with the extra's name when this environment cannot train.

    Raises:
        NotInstalled: accelerate or tensorboard is missing, or what `require_torch` asks for.
    """
    _require("Training", ("accelerate", "tensorboard"), "train")


def require_evaluation() -> None:
    """Ends with the extra's name when this environment cannot evaluate.

    Raises:
        NotInstalled: something of the extras `worker` and `evaluate` is missing.
    """
    _require("Evaluation", ("scipy", "skimage"), "evaluate")
