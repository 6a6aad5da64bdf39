"""The experiments on one model: each draws its figures into a folder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation.images import BadImages, Pixels, degrade_pixels, pixels_of, tensor_of, write
from evaluation.methods import sample_latent
from evaluation.metrics import BORDER, offline_scores
from evaluation.sheets import Cell, contact_sheet, finest, magnify
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.presets import ColorFix
from tools.figures import plots
from tools.figures.ablations import ABLATED_TIME
from tools.figures.observation import encoder_at, signal_to_noise, similarity
from tools.figures.seams import NEAR, profile, seam_ratio, tiles_alone
from training.pairs import upsample

SCALE = 4
DETAIL_SIDE = 256
"""Side in pixels of the details that sheets show."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = (4, 10, 25, 50, 100, 200)
TIMES = (0, ABLATED_TIME, 999)
POINTS = 26
"""Timesteps at which features are compared."""
FEW = 2
"""Pictures of the experiments that take long."""


@dataclass(frozen=True)
class Subject:
    """An input, a quarter as large as its original in both directions."""

    name: str
    lr: Pixels
    original: Pixels

    def note(self, picture: Pixels) -> str:
        """Its scores, for a caption."""
        scores = offline_scores(picture, self.original, BORDER)
        return f"PSNR {scores['psnr']:.2f}  NIQE {scores['niqe']:.2f}"

    def detail(self, picture: Pixels) -> Pixels:
        """The part of a result where the original has most detail."""
        side = min(DETAIL_SIDE, *self.original.shape[:2])
        top, left = finest(self.original, side)
        return picture[top : top + side, left : left + side]

    def sheet(self, results: Sequence[tuple[str, Pixels]]) -> Pixels:
        """Details of input, results and original in one row, or two where they are many."""
        cells = [
            Cell(self.detail(magnify(self.lr, SCALE)), "input"),
            *(Cell(self.detail(p), title, self.note(p)) for title, p in results),
            Cell(self.detail(self.original), "original"),
        ]
        row = len(cells) if len(cells) <= 5 else -(-len(cells) // 2)
        return contact_sheet([cells[i : i + row] for i in range(0, len(cells), row)])


@dataclass(frozen=True)
class Studio:
    """A model, the pictures and the options of every experiment, and the folder of its figures."""

    sr: StableSR
    pictures: list[Subject]
    options: UpscaleParameters
    images: Path

    @property
    def native(self) -> list[Subject]:
        """Those that are one canvas of the preset's native size, and so can share a call."""
        side = self.sr.preset.native
        return [p for p in self.pictures if p.original.shape[:2] == (side, side)]

    def decode_at(
        self, latent_options: UpscaleParameters, picture: Subject, weights: Sequence[float]
    ) -> list[Pixels]:
        """One sampling, decoded at each weight."""
        options = latent_options.model_copy(update={"fidelity_weight": max(weights)})
        with self.sr.prepare(tensor_of(picture.lr), options) as encoding:
            latent = sample_latent(self.sr, encoding, options)
            each = [options.model_copy(update={"fidelity_weight": w}) for w in weights]
            return [pixels_of(self.sr.decode(encoding, latent, o)) for o in each]

    def guidance(self) -> None:
        """Cosine similarity over timesteps, as it is and with the encoder told one timestep."""
        pictures = self.native
        if not pictures:
            raise BadImages(
                f"No picture has {self.sr.preset.native} x {self.sr.preset.native} pixels, which "
                "the comparison of features asks for."
            )
        with ExitStack() as stack, torch.inference_mode():
            lr = [
                stack.enter_context(self.sr.prepare(tensor_of(p.lr), self.options)).latent
                for p in pictures
            ]
            same = self.options.model_copy(update={"scale": 1, "fidelity_weight": 0})
            clean = [
                stack.enter_context(self.sr.prepare(tensor_of(p.original), same)).latent
                for p in pictures
            ]
            timesteps = [round(t) for t in np.linspace(0, 999, POINTS)]
            batch = torch.cat(clean), torch.cat(lr)
            aware = similarity(self.sr, *batch, timesteps)
            predict = encoder_at(self.sr, ABLATED_TIME)
            constant = similarity(self.sr, *batch, timesteps, predict)
        lines = {"time-aware": aware.mean, f"encoder told t = {ABLATED_TIME}": constant.mean}
        snr = signal_to_noise(timesteps)
        plots.draw_guidance(self.images / "guidance.svg", timesteps, lines, aware.by_size, snr)

    def time_awareness(self) -> None:
        """One picture at w = 0, the encoder told the true timestep or one for all."""
        picture, options = (
            self.pictures[0],
            self.options.model_copy(update={"fidelity_weight": 0.0}),
        )
        results = []
        with self.sr.prepare(tensor_of(picture.lr), options) as encoding:
            for timestep in (*TIMES, None):
                predict = None if timestep is None else encoder_at(self.sr, timestep)
                latent = sample_latent(self.sr, encoding, options, predict)
                title = "time-aware" if timestep is None else f"told t = {timestep}"
                results.append((title, pixels_of(self.sr.decode(encoding, latent, options))))
        write(self.images / "time-awareness.png", picture.sheet(results))

    def color_correction(self) -> None:
        """One picture at w = 0 with each correction."""
        picture, options = (
            self.pictures[0],
            self.options.model_copy(update={"fidelity_weight": 0.0}),
        )
        fixes: tuple[ColorFix, ...] = ("none", "wavelet", "adain")
        with self.sr.prepare(tensor_of(picture.lr), options) as encoding:
            latent = sample_latent(self.sr, encoding, options)
            results = [
                (
                    fix,
                    pixels_of(
                        self.sr.decode(
                            encoding, latent, options.model_copy(update={"color_fix": fix})
                        )
                    ),
                )
                for fix in fixes
            ]
        write(self.images / "color-correction.png", picture.sheet(results))

    def fidelity(self, on_progress: Callable[[str], None]) -> None:
        """The fidelity weight from 0 to 1: one picture, and curves over all of them."""
        scores: list[list[dict[str, float]]] = []
        for picture in self.pictures:
            results = self.decode_at(self.options, picture, WEIGHTS)
            scores.append([offline_scores(r, picture.original, BORDER) for r in results])
            if picture is self.pictures[0]:
                titles = [f"w = {w:g}" for w in WEIGHTS]
                write(
                    self.images / "fidelity.png",
                    picture.sheet(list(zip(titles, results, strict=True))),
                )
            on_progress(f"fidelity weight: {picture.name}")
        plain = self.bicubic_scores()
        panels = [
            plots.Panel(label, {"": _means(scores, name)}, plain[name])
            for name, label in (("psnr", "PSNR in dB"), ("ssim", "SSIM"), ("niqe", "NIQE"))
        ]
        plots.draw_panels(self.images / "fidelity.svg", "fidelity weight w", WEIGHTS, panels)

    def bicubic_scores(self) -> dict[str, float]:
        scores = []
        for p in self.pictures:
            result = pixels_of(upsample(tensor_of(p.lr), SCALE))
            scores.append(offline_scores(result, p.original, BORDER))
        return {name: statistics.fmean(s[name] for s in scores) for name in scores[0]}

    def steps(self, longest: int, on_progress: Callable[[str], None]) -> None:
        """More steps: one picture at w = 0, and curves of scores and seconds."""
        counts = [n for n in STEPS if n <= longest]
        usual = self.options.fidelity_weight
        scores: list[list[list[dict[str, float]]]] = []
        seconds = []
        sheet = []
        for picture in self.pictures[:FEW]:
            rows = []
            for n in counts:
                began = time.perf_counter()
                results = self.decode_at(
                    self.options.model_copy(update={"steps": n}), picture, (0.0, usual)
                )
                seconds.append((n, time.perf_counter() - began))
                rows.append([offline_scores(r, picture.original, BORDER) for r in results])
                if picture is self.pictures[0]:
                    sheet.append((f"{n} steps", results[0]))
                on_progress(f"{n} steps: {picture.name}")
            scores.append(rows)
        write(self.images / "steps.png", self.pictures[0].sheet(sheet))
        lines = {
            name: {
                f"w = {w:g}": _means([[r[i] for r in rows] for rows in scores], name)
                for i, w in enumerate((0.0, usual))
            }
            for name in ("psnr", "niqe")
        }
        took = [statistics.fmean(s for m, s in seconds if m == n) for n in counts]
        panels = [
            plots.Panel("PSNR in dB", lines["psnr"]),
            plots.Panel("NIQE", lines["niqe"]),
            plots.Panel("seconds a picture", {"": took}),
        ]
        plots.draw_panels(self.images / "steps.svg", "steps", counts, panels, log=True)

    def aggregation(self, on_progress: Callable[[str], None]) -> list[tuple[str, float, float]]:
        """Tiles upscaled alone, tiles that touch, and tiles that overlap, at twice the native size.

        Returns each one's name, mean seam ratio and median seconds.
        """
        native = self.sr.preset.native
        side = native // SCALE
        names = ("tiles alone", "one canvas, no overlap", "one canvas, half overlapping")
        ratios: list[list[float]] = [[] for _ in names]
        profiles: list[list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = [[] for _ in names]
        took: list[list[float]] = [[] for _ in names]
        cells = []
        for picture in self.pictures[:FEW]:
            # Half the original's size, so that four times as large is twice the native size.
            lr = tensor_of(
                degrade_pixels(picture.original, picture.name, 2, "mild", self.options.seed)
            )
            plain = pixels_of(upsample(lr, SCALE))
            for at, name in enumerate(names):
                began = time.perf_counter()
                if at == 0:
                    result = tiles_alone(self.sr, lr, self.options, side)
                else:
                    overlap = 0 if at == 1 else self.sr.preset.tile // 2
                    result = self.sr.upscale(
                        lr, self.options.model_copy(update={"tile_overlap": overlap})
                    )
                took[at].append(time.perf_counter() - began)
                pixels = pixels_of(result)
                rows, columns = (list(range(native, n, native)) for n in pixels.shape[:2])
                ratios[at].append(seam_ratio(pixels, plain, rows, columns))
                profiles[at].append(profile(pixels, rows, columns))
                if picture is self.pictures[0]:
                    low, high = native - DETAIL_SIDE // 2, native + DETAIL_SIDE // 2
                    cut = pixels[low:high, low:high]
                    cells.append(Cell(cut, name, f"seam ratio {ratios[at][0]:.2f}"))
                on_progress(f"{name}: {picture.name}")
        write(self.images / "aggregation.png", contact_sheet([cells]))
        curves = {n: [*np.mean(p, axis=0)] for n, p in zip(names, profiles, strict=True)}
        plots.draw_profiles(self.images / "seams.svg", NEAR, curves)
        return [
            (name, statistics.fmean(r), statistics.median(s))
            for name, r, s in zip(names, ratios, took, strict=True)
        ]


def _means(scores: Sequence[Sequence[dict[str, float]]], name: str) -> list[float]:
    """Over the pictures, at each place of the row."""
    return [statistics.fmean(s[name] for s in column) for column in zip(*scores, strict=True)]
