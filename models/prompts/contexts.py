"""What the UNet's cross-attention reads for a job: the constant of the empty prompt, or a text's.

The released networks were trained with the empty prompt alone, whose embedding is stored with the
weights; so a job without prompts needs no text tower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import MissingTextTower
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters
from models.prompts.tokenizer import tokenize

__all__ = ["check_prompts", "contexts"]


def check_prompts(networks: Networks, options: UpscaleParameters, preset: str) -> None:
    """Whether the weights can read the prompts of these options; `preset` is their name.

    Raises:
        MissingTextTower: there is a prompt, and the weights hold no text tower.
    """
    if (options.prompt or options.negative_prompt) and networks.text is None:
        raise MissingTextTower(
            f"The weights of {preset} hold no text tower, so prompt and negative_prompt must be "
            "empty and guidance_scale 1; released weights pulled or converted with --text read "
            "prompts."
        )


@torch.inference_mode()
def contexts(
    networks: Networks, options: UpscaleParameters, preset: str, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The context of the prompt, and that of the negative prompt where guidance asks for one.

    Each float32 (1, tokens, width) on `device`. The text tower runs where its weights lie.

    Raises:
        MissingTextTower: as `check_prompts`.
    """
    check_prompts(networks, options, preset)
    wanted = _context(networks, options.prompt).to(device, torch.float32)
    if options.guidance_scale == 1:
        return wanted, None
    return wanted, _context(networks, options.negative_prompt).to(device, torch.float32)


def _context(networks: Networks, prompt: str) -> Tensor:
    if not prompt:
        return networks.context
    tower = networks.text
    assert tower is not None  # check_prompts
    tokens = torch.tensor([tokenize(prompt)], device=tower.positional_embedding.device)
    embedded: Tensor = tower(tokens)
    return embedded
