"""The presets that clients choose are those that the pipeline can run."""

from __future__ import annotations

from jobs.presets import PRESETS
from models.presets import PRESETS as NETWORKS


def test_both_sides_name_the_same_presets_with_the_same_defaults() -> None:
    assert list(PRESETS) == list(NETWORKS)
    for name, preset in PRESETS.items():
        network = NETWORKS[name]
        assert preset.steps == network.steps
        assert preset.fidelity_weight == network.fidelity_weight
        assert preset.native == network.native
        assert preset.embedded == network.embedded
