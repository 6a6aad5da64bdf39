"""What each part of the method is worth on these weights: the paper's tables 3 to 5, in small."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from evaluation.images import Pixels, pixels_of, tensor_of
from evaluation.methods import sample_latent
from evaluation.metrics import BORDER, offline_scores
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.plan import EncodedImage
from models.tiling import TileGrid
from tools.figures.observation import encoder_at, with_tile, without_grain, without_modulation
from tools.figures.seams import borders, seam_ratio
from training.pairs import upsample

ABLATED_TIME = 500
"""The timestep that the encoder is told without time awareness."""

Picture = tuple[str, Pixels, Pixels]
"""Name, input, original."""
Scores = dict[str, float]


@dataclass(frozen=True)
class Worth:
    """A score with the part, without it, and the difference over the pictures."""

    score: str
    with_part: float
    without: float
    error: float
    """Standard error of the mean difference"""

    @property
    def gain(self) -> float:
        """Of having the part; positive when the score rises with it."""
        return self.with_part - self.without

    @property
    def measurable(self) -> bool:
        """Whether the difference is more than twice its standard error."""
        return abs(self.gain) > 2 * self.error


@dataclass(frozen=True)
class Ablation:
    """One part at one fidelity weight."""

    part: str
    weight: str
    worths: list[Worth]


def ablations(
    sr: StableSR,
    pictures: Sequence[Picture],
    options: UpscaleParameters,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[Ablation]:
    """Measures every part over the pictures, at w = 0 and at the options' weight.

    Args:
        sr: the model.
        pictures: inputs and originals, at the options' scale.
        options: the method as it is.
        on_progress: hears what was just done.
    """
    cases: dict[tuple[str, str], list[tuple[Scores, Scores]]] = {}
    for name, lr, original in pictures:
        for part, weight, with_part, without in _cases(sr, tensor_of(lr), original, options):
            cases.setdefault((part, weight), []).append((with_part, without))
        on_progress(f"ablations: {name}")
    return [
        Ablation(part, weight, [_worth(score, pairs) for score in pairs[0][0]])
        for (part, weight), pairs in cases.items()
    ]


def _worth(score: str, pairs: Sequence[tuple[Scores, Scores]]) -> Worth:
    ours, theirs = ([pair[i][score] for pair in pairs] for i in (0, 1))
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return Worth(score, statistics.fmean(ours), statistics.fmean(theirs), error)


def _cases(
    sr: StableSR, image: Tensor, original: Pixels, options: UpscaleParameters
) -> Iterator[tuple[str, str, Scores, Scores]]:
    """Part, fidelity weight, scores with it and without it."""

    def score(result: Tensor) -> Scores:
        return offline_scores(pixels_of(result), original, BORDER)

    free, usual = options.model_copy(update={"fidelity_weight": 0.0}), options
    with sr.prepare(image, options.model_copy(update={"fidelity_weight": 1.0})) as encoding:
        full = sample_latent(sr, encoding, options)
        timeless = sample_latent(sr, encoding, options, encoder_at(sr, ABLATED_TIME))
        with without_modulation(sr.networks.unet):
            plain = sample_latent(sr, encoding, options)
        best = {o.fidelity_weight: score(sr.decode(encoding, full, o)) for o in (free, usual)}
        for part, latent in (
            ("prior and guidance", encoding.latent),
            ("time awareness", timeless),
            ("modulation", plain),
        ):
            for o in (free, usual):
                without = score(sr.decode(encoding, latent, o))
                yield part, f"{o.fidelity_weight:g}", best[o.fidelity_weight], without
        for o in (usual, options.model_copy(update={"fidelity_weight": 1.0})):
            with_part = best.get(o.fidelity_weight) or score(sr.decode(encoding, full, o))
            yield "CFW", f"{o.fidelity_weight:g} against 0", with_part, best[0.0]
        for o in (free, usual):
            without = score(sr.decode(encoding, full, o.model_copy(update={"color_fix": "none"})))
            yield "colour correction", f"{o.fidelity_weight:g}", best[o.fidelity_weight], without
        for o in (free, usual) if sr.networks.config.grain else ():
            with without_grain(sr.networks):
                without = score(sr.decode(encoding, full, o))
            yield "grain", f"{o.fidelity_weight:g}", best[o.fidelity_weight], without
    yield from _aggregation(sr, image, original, (free, usual))


def _aggregation(
    sr: StableSR, image: Tensor, original: Pixels, weights: Sequence[UpscaleParameters]
) -> Iterator[tuple[str, str, Scores, Scores]]:
    """Half-overlapping tiles against tiles that only touch: several diffusions, as it were.

    Tiles are half as large as the preset's, for a picture of its native size has only one.
    """
    cells = sr.preset.tile // 2
    reference = pixels_of(upsample(image, round(weights[-1].scale)))
    small = with_tile(sr, cells)
    results: list[dict[float, Scores]] = []
    for overlap in (cells // 2, 0):
        options = weights[-1].model_copy(update={"tile_overlap": overlap})
        with small.prepare(image, options.model_copy(update={"fidelity_weight": 1.0})) as encoding:
            latent = sample_latent(small, encoding, options)
            scores = {}
            for o in weights:
                result = pixels_of(small.decode(encoding, latent, o))
                height, width = latent.shape[2:]
                grid = TileGrid(height, width, cells, overlap)
                ratio = _seam(result, reference, encoding, grid)
                scores[o.fidelity_weight] = offline_scores(result, original, BORDER) | {
                    "seam": ratio
                }
            results.append(scores)
    for o in weights:
        w = o.fidelity_weight
        yield f"aggregation, tiles of {cells}", f"{w:g}", results[0][w], results[1][w]


def _seam(result: Pixels, reference: Pixels, encoding: EncodedImage, grid: TileGrid) -> float:
    # A cell's side in pixels of the result, which may be smaller than the canvas.
    cell = result.shape[0] * 8 // encoding.reference.shape[2]
    return seam_ratio(result, reference, *borders(grid, cell), cell)
