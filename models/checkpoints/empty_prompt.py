"""The empty prompt's embedding, computed once when weights are converted, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from models.checkpoints.pieces import Piece
from models.config import TextConfig
from models.networks.text import TextTower

__all__ = ["embed_empty_prompt"]


@torch.inference_mode()
def embed_empty_prompt(config: TextConfig, pieces: Mapping[str, Piece]) -> Tensor:
    """What the text tower makes of "": (1, tokens, width), float32.

    The tower of the released files takes 1.4 GB in float32; one block of it is in memory at a time.

    Args:
        pieces: of the tower, among others, named text.*.
    """
    with torch.device("meta"):
        tower = TextTower(config)
    # Start and end are the last two words of the vocabulary; OpenCLIP fills up with zeros.
    tokens = torch.zeros(config.tokens, dtype=torch.long)
    tokens[0], tokens[1] = config.vocabulary - 2, config.vocabulary - 1
    words = pieces["text.token_embedding.weight"].read()[tokens].float()
    state = words + pieces["text.positional_embedding"].read().float()
    for i, block in enumerate(tower.blocks):
        state = _filled(block, f"text.blocks.{i}", pieces)(state[None])[0]
    embedded: Tensor = _filled(tower.ln_final, "text.ln_final", pieces)(state[None])
    return embedded


def _filled(module: nn.Module, name: str, pieces: Mapping[str, Piece]) -> nn.Module:
    """A copy of a module on the meta device, with its numbers; the module stays without."""
    numbers = {key: pieces[f"{name}.{key}"].read().float() for key in module.state_dict()}
    filled = deepcopy(module)
    filled.load_state_dict(numbers, assign=True)
    return filled
