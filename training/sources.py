"""What the stages learn from: images, latents, the teacher's pairs, sampled latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from models.networks.bundle import Networks
from training.config import (
    CfwSettings,
    DecoderSettings,
    DenoisingSettings,
    RunSettings,
    StageName,
    VaeSettings,
)
from training.denoising import Latents
from training.objective import Batch
from training.pairs import Pairs, enlarged, stream
from training.sampling import sampled_batch
from training.shards import TAUGHT, Shards, taught, teacher_shards
from training.starting import fingerprint

__all__ = ["Sources"]

# Spreads what is drawn a share of the time evenly over the numbers of the batches.
_GOLDEN = (5**0.5 - 1) / 2
_FIRST_STAGE = ("autoencoder.encoder.", "autoencoder.quant_conv.", "first_stage.")


class Sources:
    """Of one stage.

    Args:
        settings: of the run.
        folder: of the stage; what is made once lies in it, and the teacher's pairs beside it.
        accelerator: of the stage.
        say: hears what is being made.
    """

    def __init__(
        self,
        settings: RunSettings,
        folder: Path,
        accelerator: Accelerator,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._folder = settings, folder
        self._accelerator, self._say = accelerator, say
        self._device, self._rank = accelerator.device, accelerator.process_index

    def taught(self) -> Shards:
        """The teacher's pairs, all of them made."""
        settings = self._settings
        assert settings.teacher is not None  # the settings refuse that
        shards = teacher_shards(
            settings.teacher, settings.data, settings.seed, self._folder.parent, self._device
        )
        return self._made(shards)

    def images(self, table: VaeSettings | DecoderSettings, seed: int) -> Callable[[int], Tensor]:
        """Number of a batch -> photographs, or what the teacher made of them."""
        batch = self._mixed(table, seed, low=False)
        return lambda number: batch(number)[0]

    def _mixed(
        self, table: VaeSettings | DenoisingSettings | DecoderSettings, seed: int, *, low: bool
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """Number of a batch -> images, some the teacher's; with `low` also what they are to be
        restored from, enlarged."""
        pairs = self._pairs(table.crop, table.loop.batch, seed)
        shards = self.taught() if table.teacher_share else None
        names = (TAUGHT, "low") if low else (TAUGHT,)

        def batch(number: int) -> tuple[Tensor, ...]:
            if shards is None or not _is_taught(number, table.teacher_share):
                return pairs.at(number) if low else (pairs.high(number),)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            image, *lows = taught(shards, names, table.loop.batch, table.crop, generator)
            lows = [enlarged(part, self._settings.data.scale) for part in lows]
            return tuple(part.to(self._device) for part in (image, *lows))

        return batch

    def latents(self, stage: StageName, table: DenoisingSettings, networks: Networks) -> Latents:
        """Latents of images and, for the guidance, of degraded photographs."""
        seed = stream(self._settings.seed, f"{stage}/pairs", 0 if table.cached else self._rank)
        first_stage = networks.first_stage or networks.autoencoder

        def encoded(image: Tensor) -> Tensor:
            with torch.no_grad(), self._accelerator.autocast():
                moments = first_stage.encode(image * 2 - 1).moments
            # Contiguous: torch 2.13's group norm of a channels-last input crashes in the backward
            # pass under autocast when its own weights are frozen.
            return first_stage.latent(moments.float()).contiguous()

        images = self._mixed(table, seed, low=stage == "encoder")

        def batch(number: int) -> Batch:
            return {n: encoded(i) for n, i in zip(("high", "low"), images(number), strict=False)}

        if not table.cached:
            return lambda number, generator: batch(number)
        shards = Shards(
            self._folder / "latents",
            batch,
            table.cached,
            self._follows_from(
                networks,
                lambda name: name.startswith(_FIRST_STAGE),
                crop=table.crop,
                batch=table.loop.batch,
                seed=seed,
                teacher_share=table.teacher_share,
            ),
        )
        processes = self._accelerator.num_processes

        def picked(number: int, generator: torch.Generator) -> Batch:
            mine = number * processes + self._rank
            if mine < table.cached:  # the first time round each is new, and made now
                return {k: v.to(self._device) for k, v in shards.whole(mine).items()}
            entries = shards.pick(table.loop.batch, generator)
            return {k: torch.stack([e[k] for e in entries]).to(self._device) for k in entries[0]}

        return picked

    def sampled(self, table: CfwSettings, networks: Networks) -> Shards:
        """What the model makes of degraded photographs: the fusion layers have to mend that."""
        seed = stream(self._settings.seed, "cfw/pairs")
        pairs = self._pairs(table.crop, table.sampled_batch, seed)

        def batch(number: int) -> Batch:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            with self._accelerator.autocast():
                return sampled_batch(
                    networks, pairs.at(number), steps=table.sampling_steps, generator=generator
                )

        shards = Shards(
            self._folder / "sampled",
            batch,
            table.sampled,
            self._follows_from(
                networks,
                lambda name: ".fusion." not in name,
                crop=table.crop,
                batch=table.sampled_batch,
                seed=seed,
                steps=table.sampling_steps,
            ),
        )
        return self._made(shards)

    def _pairs(self, crop: int, batch: int, seed: int) -> Pairs:
        data = self._settings.data
        return Pairs(data, crop=crop, batch=batch, seed=seed, device=self._device)

    def _made(self, shards: Shards) -> Shards:
        """Each process makes its share of what is missing, and waits for the others."""
        processes = self._accelerator.num_processes
        shards.make(self._say, rank=self._rank, processes=processes)
        self._accelerator.wait_for_everyone()
        return shards

    def _follows_from(
        self, networks: Networks, of: Callable[[str], bool], **values: object
    ) -> dict[str, object]:
        """What kept tensors were made from: `values`, the data, and the weights that `of` names."""
        data = self._settings.data.model_dump(mode="json")
        return {"data": data, "weights": fingerprint(networks, of=of), **values}


def _is_taught(number: int, share: float) -> bool:
    """Whether the batch of this number is the teacher's, a share of all being so."""
    return (number * _GOLDEN) % 1 < share
