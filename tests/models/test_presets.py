"""The catalogue of presets."""

from __future__ import annotations

import json

import pytest

from models.checkpoints.files import preset_folder
from models.errors import UnknownPreset
from models.presets import PRESETS, get_preset


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownPreset, match=r"'huge'.*stablesr-512"):
        get_preset("huge")


def test_every_preset_says_under_what_licence() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.licence
        assert preset.licence_url.startswith("https://")
        assert 1 <= preset.steps <= 1000
        assert 0 <= preset.fidelity_weight <= 1


def test_the_embedded_presets_prompts_are_as_its_weights_say() -> None:
    for preset in PRESETS.values():
        if preset.embedded:
            config = json.loads((preset_folder(preset) / "config.json").read_text())
            assert preset.prompts == (config["text"] is not None)
