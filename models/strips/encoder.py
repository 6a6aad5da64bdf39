"""The released encoder in passes: an image to posterior moments and the decoder's features."""

from __future__ import annotations

from types import TracebackType

from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D
from torch import Tensor

from models.networks.autoencoder import Autoencoder
from models.strips.attention import attended
from models.strips.blocks import downsampled, entered, head, layers, resnet
from models.strips.executor import Executor, Source, Write
from models.strips.store import FeatureMap, MapStore

__all__ = ["EncodedStrips", "middle", "run_encoder"]


class EncodedStrips:
    """What the encoder says of an image. Holds memory or files until it is closed."""

    def __init__(self, moments: Tensor, features: tuple[FeatureMap, ...], store: MapStore) -> None:
        self.moments = moments
        """As of `EncoderOutput`, float32 on the network's device."""
        self.features = features
        """As of `EncoderOutput`; none if they were not asked for."""
        self._store = store

    @property
    def held(self) -> int:
        """Bytes of the features that are not freed yet."""
        return self._store.held

    def close(self) -> None:
        """Frees the features; the moments stay."""
        self._store.close()

    def __enter__(self) -> EncodedStrips:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def run_encoder(
    run: Executor,
    autoencoder: Autoencoder,
    image: Source,
    keys: int,
    *,
    features: bool,
    write: Write,
) -> tuple[FeatureMap, ...]:
    """Passes from an image to the moments' rows and, where asked, the decoder's features.

    Args:
        run: runs them.
        autoencoder: whose encoder.
        image: (3, H, W)
        keys: the attention's bound.
        features: whether to keep them.
        write: takes the moments' first row and rows (1, 2 * latent_channels, n, W/8) at a time.
    """
    encoder = autoencoder.encoder
    x = entered(run, image, [encoder.conv_in])
    kept: list[FeatureMap] = []
    for level, block in enumerate(layers(encoder.down_blocks, DownEncoderBlock2D)):
        for residual in layers(block.resnets, ResnetBlock2D):
            x = resnet(run, [x], residual)
        wanted = features and level in (1, 2)
        if wanted:
            kept.append(x)
        if block.downsamplers is not None:
            (sampler,) = layers(block.downsamplers, Downsample2D)
            x = downsampled(run, x, sampler.conv, last=not wanted)
    x = middle(run, x, encoder.mid_block, keys)
    head(run, x, encoder.conv_norm_out, [encoder.conv_out, autoencoder.quant_conv], write)
    return tuple(kept)


def middle(run: Executor, x: FeatureMap, block: UNetMidBlock2D, keys: int) -> FeatureMap:
    """The middle block, of encoder and decoder alike."""
    before, after = layers(block.resnets, ResnetBlock2D)
    (attention,) = layers(block.attentions, Attention)
    x = resnet(run, [x], before)
    x = attended(run, x, attention, keys)
    return resnet(run, [x], after)
