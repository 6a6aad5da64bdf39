"""The presets that clients choose are those that the pipeline can run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.presets import MAX_CANVAS, PRESETS
from models.checkpoints.folder import preset_folder
from models.errors import InvalidOption
from models.geometry import MAX_CANVAS as LARGEST
from models.geometry import canvas_size
from models.presets import PRESETS as NETWORKS


def test_both_sides_name_the_same_presets_with_the_same_defaults() -> None:
    assert list(PRESETS) == list(NETWORKS)
    for name, preset in PRESETS.items():
        network = NETWORKS[name]
        assert preset.steps == network.steps
        assert preset.fidelity_weight == network.fidelity_weight
        assert preset.native == network.native
        assert preset.embedded == network.embedded


def test_the_embedded_presets_prompts_are_as_its_weights_say() -> None:
    for name, preset in PRESETS.items():
        if preset.embedded:
            config = json.loads((preset_folder(NETWORKS[name]) / "config.json").read_text())
            assert preset.prompts == (config["text"] is not None)


@given(
    st.integers(1, 30_000), st.integers(1, 30_000), st.floats(1, 16), st.sampled_from([*PRESETS])
)
def test_both_sides_compute_an_image_at_the_same_size(
    width: int, height: int, scale: float, name: str
) -> None:
    columns, rows = PRESETS[name].canvas(width, height, scale)
    assert MAX_CANVAS == LARGEST
    if rows * columns <= MAX_CANVAS:
        assert canvas_size(height, width, scale, NETWORKS[name].native) == (rows, columns)
    else:
        with pytest.raises(InvalidOption, match=f"{columns} x {rows}"):
            canvas_size(height, width, scale, NETWORKS[name].native)
