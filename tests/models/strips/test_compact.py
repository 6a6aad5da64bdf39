"""The compact autoencoder in strips: what it gives, and what it is said to take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.config import AutoencoderConfig, CompactConfig
from models.networks.compact import CompactAutoencoder
from models.strips import Callbacks, Keep, StripConfig, coding_cost
from models.strips import compact as passes
from models.strips import store as stores
from tests.models.strips.images import (
    CPU,
    coded_whole,
    decode_strips,
    encode_strips,
    open_files,
    picture,
    relative_error,
)

# More layers than one pass has; the first are shared by both ends of the fidelity weight.
SMALL = CompactConfig(
    quarter_width=8,
    eighth_width=16,
    layers=11,
    head_widths=(8, 16, 8),
    shared_layers=3,
)
FIDELITY = 0.7
EXACT = 3e-6


@pytest.fixture(scope="module")
def compact() -> CompactAutoencoder:
    """No layer is one that does nothing at the start, and slopes differ."""
    torch.manual_seed(0)
    autoencoder = CompactAutoencoder(SMALL)
    for parameter in autoencoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return autoencoder.eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 264), (264, 40), (136, 152)])
@pytest.mark.parametrize("fidelity", [0.0, FIDELITY])
def test_pieces_give_the_whole_images_result(
    compact: CompactAutoencoder, height: int, width: int, fidelity: float
) -> None:
    image = picture(height, width)
    encoded, latent, wrapped, plain = coded_whole(compact, image, FIDELITY)
    with encode_strips(compact, image, StripConfig(rows=24)) as found:
        assert found.moments.shape == encoded.moments.shape
        assert relative_error(found.moments, encoded.moments) < EXACT
        [feature] = found.features
        assert relative_error(feature.read(0, feature.height), encoded.features[0]) < EXACT
        out = decode_strips(compact, latent, found.features, fidelity, StripConfig(rows=24))
    assert out.shape == image.shape
    assert out.dtype == torch.float32
    assert relative_error(out, wrapped if fidelity else plain) < EXACT
    assert relative_error(wrapped, plain) > 1e-2


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 32, 4096])
def test_the_height_of_strips_does_not_matter(compact: CompactAutoencoder, rows: int) -> None:
    image = picture(120, 40)
    encoded, latent, wrapped, plain = coded_whole(compact, image, FIDELITY)
    strips = StripConfig(rows=rows)
    with encode_strips(compact, image, strips) as found:
        assert relative_error(found.moments, encoded.moments) < EXACT
        fused = decode_strips(compact, latent, found.features, FIDELITY, strips)
    assert float((fused - wrapped).abs().max()) < 1e-5 * float(wrapped.abs().max())
    unfused = decode_strips(compact, latent, (), FIDELITY, strips)
    assert float((unfused - plain).abs().max()) < 1e-5 * float(plain.abs().max())


@pytest.mark.parametrize("together", [1, 3, 100])
def test_how_many_convolutions_are_one_pass_does_not_matter(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(passes, "_TOGETHER", together)
    image = picture(72, 40)
    _, latent, wrapped, _ = coded_whole(compact, image, FIDELITY)
    with encode_strips(compact, image, StripConfig(rows=12)) as found:
        out = decode_strips(compact, latent, found.features, FIDELITY, StripConfig(rows=12))
    assert relative_error(out, wrapped) < EXACT


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
def test_where_maps_are_kept_changes_not_one_bit(
    compact: CompactAutoencoder, keep: Keep, tmp_path: Path
) -> None:
    image = picture(72, 64)
    results: list[Tensor] = []
    for strips in (StripConfig(rows=16), StripConfig(rows=16, keep=keep, scratch=tmp_path)):
        with encode_strips(compact, image, strips) as found:
            results.append(decode_strips(compact, found.moments, found.features, FIDELITY, strips))
            assert bool(open_files(tmp_path)) == (strips.keep == "disk")
    assert torch.equal(*results)
    assert not list(tmp_path.iterdir())
    assert not open_files(tmp_path)


def test_features_that_nobody_wants_are_not_kept(compact: CompactAutoencoder) -> None:
    with encode_strips(compact, picture(64, 72), StripConfig(rows=16), features=False) as found:
        assert found.features == ()
        assert found.held == 0


def test_features_can_be_read_again_unless_they_are_to_be_freed(
    compact: CompactAutoencoder,
) -> None:
    strips = StripConfig(rows=16)
    with encode_strips(compact, picture(72, 64), strips) as found:
        given = compact, found.moments, found.features, FIDELITY, strips
        first = decode_strips(*given)
        assert found.held > 0
        assert torch.equal(decode_strips(*given, free_features=True), first)
        assert found.held == 0


@pytest.mark.parametrize(
    ("decode", "fusion"), [(False, True), (True, False), (True, True)], ids=str
)
@pytest.mark.parametrize("config", [SMALL, CompactConfig()], ids=["small", "default"])
def test_flops_are_those_that_torch_counts(
    config: CompactConfig, decode: bool, fusion: bool
) -> None:
    height, width = 64, 32
    with torch.device("meta"):
        whole = CompactAutoencoder(config)
        image, latent = torch.empty(1, 3, height, width), torch.empty(1, 16, 8, 4)
        features = (torch.empty(1, config.quarter_width, 16, 8),) if fusion else None
        with FlopCounterMode(display=False) as counter:
            if decode:
                whole.decode(latent, features, torch.tensor(1.0))
            else:
                whole.encode(image)
    cost = coding_cost(
        config, height, width, StripConfig(), torch.float32, decode=decode, fusion=fusion
    )
    # To torch the basis of the image in the latent is one more convolution.
    basis = 2 * 12 * 12 * (height // 8) * (width // 8)
    assert cost.flops == int(counter.get_total_flops()) - basis


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[stores.MapStore]]:
    """The stores that are made meanwhile."""
    seen: list[stores.MapStore] = []
    enter = stores.MapStore.__init__

    def watched(self: stores.MapStore, *args: object) -> None:
        enter(self, *args)  # type: ignore[arg-type]  # passed on as they came
        if self.device == CPU:  # the rehearsals' are on none
            seen.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(stores.MapStore, "__init__", watched)
        yield seen


@pytest.mark.parametrize("rows", [4, 32])
@pytest.mark.parametrize("fusion", [False, True])
def test_nothing_is_held_but_the_maps_that_were_counted(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch, rows: int, fusion: bool
) -> None:
    strips, height, width = StripConfig(rows), 192, 64
    sizes = (SMALL, height, width, strips, torch.float32)
    said = [coding_cost(*sizes, decode=decode, fusion=fusion).maps for decode in (False, True)]
    held: list[int] = []
    with (
        opened(monkeypatch) as made,
        encode_strips(compact, picture(height, width), strips, features=fusion) as found,
    ):
        decode_strips(
            compact,
            found.moments,
            found.features,
            1.0,
            strips,
            free_features=True,
            callbacks=Callbacks(lambda _: held.append(sum(s.held for s in made))),
        )
    encoding, decoding = made
    assert 0.75 * said[0] < encoding.peak <= said[0]
    assert 0.7 * said[1] < max(held) <= said[1]
    assert decoding.held == encoding.held == 0


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_strips_take_no_more_than_was_said(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Of every convolution what it reads and gives, at the widest place of a pass."""
    strips, height, width = StripConfig(rows), 256, 64
    said = coding_cost(SMALL, height, width, strips, torch.float32, decode=True, fusion=True).strips
    largest = 0
    conv2d: Callable[..., Tensor] = F.conv2d

    def watched(rows: Tensor, *given: object, **more: object) -> Tensor:
        nonlocal largest
        made = conv2d(rows, *given, **more)
        largest = max(largest, rows.nbytes + made.nbytes)
        return made

    image = picture(height, width)
    with encode_strips(compact, image, strips) as found:
        monkeypatch.setattr(F, "conv2d", watched)
        decode_strips(compact, found.moments, found.features, 1.0, strips)
    assert 0.3 * said < largest <= said


def test_progress_rises_to_1(compact: CompactAutoencoder) -> None:
    told: list[float] = []
    strips = StripConfig(rows=16)
    with encode_strips(
        compact, picture(128, 32), strips, callbacks=Callbacks(told.append)
    ) as found:
        assert told == sorted(told)
        assert told[-1] == pytest.approx(1.0)
        del told[:]
        features, callbacks = found.features, Callbacks(told.append)
        decode_strips(compact, found.moments, features, 1.0, strips, callbacks=callbacks)
    assert told == sorted(told)
    assert told[0] < 0.2
    assert told[-1] == pytest.approx(1.0)


def test_an_image_takes_a_fraction_of_the_released_autoencoders_memory() -> None:
    sizes = (2048, 2048, StripConfig(64), torch.float32)
    ours, released = (
        sum(coding_cost(config, *sizes, decode=True, fusion=True)[1:])
        for config in (CompactConfig(), AutoencoderConfig())
    )
    assert ours < released / 8


def test_where_memory_was_short_the_whole_image_is_not_decoded_at_once(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    strips = StripConfig(4096, "disk")
    with encode_strips(compact, picture(64, 32), strips) as found:
        wanted = compact.decode(found.moments)

        def fails(*given: object) -> Tensor:
            raise torch.OutOfMemoryError("out of memory")

        monkeypatch.setattr(compact, "decode", fails)
        made = decode_strips(compact, found.moments, (), 0.0, strips)
        assert relative_error(made, wanted) < 1e-5
        with pytest.raises(torch.OutOfMemoryError):
            decode_strips(compact, found.moments, (), 0.0, StripConfig(4096))
