"""Folded networks where they are used: loaded, in strips, on a device that holds one part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.checkpoints.folder import save_folder
from models.folding import fold
from models.pieces import Callbacks, Pieces, decode
from models.pipeline import StableSR
from models.plan import Resources
from models.residency import Offloaded
from tests.models import narrow
from tests.models.folding import small
from tests.parity import FOLDED, Golden, comparisons

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[2] / "golden"


def test_the_golden_figures_of_the_networks_are_reproduced_with_all_folds() -> None:
    """`python -m tests.parity --fold` takes the samplers and whole images too."""
    golden = Golden(GOLDEN, folded=True)
    assert golden.networks.unet.time_table is not None
    results = list(comparisons(golden, FOLDED))
    assert [r for r in results if not r.ok] == []
    assert len(results) == 18


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@torch.inference_mode()
def test_the_decoder_in_strips_gives_the_whole_decoders_image(rows: int) -> None:
    plain, folded = small.made().autoencoder, fold(small.made()).autoencoder
    latent = torch.randn(1, 4, 5, 3, dtype=torch.float64)
    ours = decode(folded, latent, (), 0, Pieces(rows), device=CPU, dtype=torch.float64)
    torch.testing.assert_close(ours, plain.decode(latent).float(), rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_progress_ends_at_1_although_there_is_less_to_compute() -> None:
    heard: list[float] = []
    callbacks = Callbacks(heard.append)
    folded, latent = fold(small.made()).autoencoder, torch.randn(1, 4, 5, 3, dtype=torch.float64)
    decode(folded, latent, (), 0, Pieces(8), device=CPU, dtype=torch.float64, callbacks=callbacks)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_a_folder_is_loaded_with_folds_unless_told_not_to(tmp_path: Path) -> None:
    save_folder(small.made(), tmp_path, torch.float32)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results: list[torch.Tensor] = []
    for sr in (
        StableSR.from_folder(tmp_path, narrow.PRESET),
        StableSR.from_folder(tmp_path, narrow.PRESET, fold=False),
    ):
        assert (sr.networks.unet.time_table is not None) == (not results)
        results.append(sr.upscale(image, narrow.parameters(seed=3)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_offload_moves_everything_that_folds_have_made() -> None:
    sr = StableSR.with_random_weights(
        narrow.CONFIG, narrow.PRESET, resources=Resources(offload=True)
    )
    before = {name: p.clone() for name, p in sr.networks.named_parameters()}
    residency = Offloaded(sr.networks, torch.device("meta"))
    with residency.holding("denoiser"):
        for part in (sr.networks.unet, sr.networks.encoder):
            assert {p.device.type for p in part.parameters()} == {"meta"}
            assert list(part.buffers()) == []
    with residency.holding("autoencoder"):
        assert {p.device.type for p in sr.networks.autoencoder.parameters()} == {"meta"}
        for name, parameter in sr.networks.unet.named_parameters(prefix="unet"):
            assert torch.equal(parameter, before[name])


@torch.inference_mode()
def test_without_fidelity_nothing_is_fused_and_no_features_are_kept() -> None:
    """w = 0: the encoder's features are not kept, and the decoder does not look for any."""
    sr = StableSR.with_random_weights(narrow.CONFIG, narrow.PRESET)
    options = narrow.parameters(fidelity_weight=0, steps=1)
    fusion = sr.networks.autoencoder.decoder.fusion
    assert fusion is not None
    for layer in fusion.children():
        layer.register_forward_hook(lambda *_: pytest.fail("a fusion layer was called"))
    with sr.prepare(torch.rand(1, 3, 16, 16), options) as prepared:
        assert prepared.encoding.features == ()
        assert prepared.encoding.held == 0
        assert sr.decode(prepared, prepared.latent, options).isfinite().all()
