"""`stablesr evaluate`: scores, sheets and blind pairs of StableSR and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli import errors
from cli.errors import BadSettings, CliError, InputError, JobFailure
from cli.options import AsJson, ColorFixOption, Device, Preset, Steps, option
from cli.view import console

if TYPE_CHECKING:  # torch takes seconds; help needs none of it
    from evaluation.comparison import Comparison

app = typer.Typer(
    help="Score StableSR on images, beside other methods and the paper.",
    invoke_without_command=True,
    no_args_is_help=True,
)


@app.callback()
def compare(
    context: typer.Context,
    lr: Annotated[Path | None, option("The folder of inputs, named as originals.", "--lr")] = None,
    hr: Annotated[Path | None, option("The folder of originals.", "--hr")] = None,
    degrade: Annotated[
        Literal["paper", "mild", "bicubic"] | None,
        option(
            "Make the inputs from the originals, a quarter as large: by the paper's "
            "degradation, a milder one, or bicubic reduction alone."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        option(
            "bicubic; realesrgan-x4plus, realesrgan-x4fast or realsr-df2k, with =PATH of the "
            "wheel or folder that holds it; or a model file for spandrel. Repeatable.",
            default="bicubic",
            metavar="NAME",
        ),
    ] = None,
    fidelity_weight: Annotated[
        list[float] | None,
        option("Repeatable.", default="0, 0.5 and 1", min=0.0, max=1.0, metavar="W"),
    ] = None,
    preset: Preset = None,
    steps: Steps = None,
    color_fix: ColorFixOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, degradation and pairs.")] = 0,
    border: Annotated[
        int, typer.Option(min=0, help="Pixels left out on each side by PSNR and SSIM.")
    ] = 4,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only scores that need no fetched weights.")
    ] = False,
    vgg: Annotated[Path | None, option("A VGG-16 file: a perceptual distance over it.")] = None,
    device: Device = None,
    out: Annotated[Path, typer.Option("--out", help="Where results, sheets and scores go.")] = Path(
        "evaluation"
    ),
    as_json: AsJson = False,
) -> None:
    """Score StableSR on images, beside other methods and the paper.

    Inputs and originals are matched by their names. Pages to look at and to choose on blindly are
    written beside the scores.
    """
    if context.invoked_subcommand is not None:
        return
    if hr is None or (lr is None) == (degrade is None):
        raise BadSettings("Give --hr, and either --lr or --degrade.")
    with _model_errors():
        from evaluation import comparison, images, learned, methods, sheets, study
        from models.parameters import preset_parameters
        from worker.device import load as load_model

        settings = errors.load(preset=preset, device=device)
        weights = list(dict.fromkeys(fidelity_weight or [0.0, 0.5, 1.0]))
        if degrade is not None:
            pairs = images.write_degraded(hr, out / "lr", 4, degrade, seed)
        else:
            assert lr is not None
            pairs = images.match_images(lr, hr)
        sr = load_model(settings, jobs=1)
        with errors.valid_parameters():
            options = preset_parameters(sr.preset, steps=steps, seed=seed, color_fix=color_fix)
        names = dict.fromkeys(baseline or ["bicubic"])
        beside = [methods.make_baseline(name, sr.device) for name in names]
        ours = methods.OursAtWeights(sr, weights, options)
        metrics = learned.load(() if offline else learned.LEARNED_SCORES, sr.device)
        if vgg is not None:
            learned.add_vgg(metrics, vgg)
        scores = comparison.compare(pairs, [*beside, ours], out, metrics, border, _print_method)
        scores.settings = {
            **{"preset": settings.preset, "device": str(sr.device)},
            **{"steps": steps or sr.preset.steps, "color_fix": options.color_fix, "seed": seed},
            **{"border": border, "degrade": degrade},
            **{"pictures": len(pairs), "scale": pairs[0].scale},
        }
        comparison.write_json(out / "scores.json", scores.as_dict())
        page = sheets.write_sheets(scores, pairs, out)
        study_method = ours.name(min(weights, key=lambda w: abs(w - sr.preset.fidelity_weight)))
        others = [name for method in beside for name in method.names]
        pages = study.write_study(pairs, study_method, others, out, seed)
    if as_json:
        typer.echo((out / "scores.json").read_text("utf-8"), nl=False)
    else:
        _print_scores(scores)
    console.print(f"To look at: {page}; to choose on blindly: {pages}.", soft_wrap=True)


@app.command()
def tally(
    answers: Annotated[
        list[Path], typer.Argument(help="Files that the study's page let download.")
    ],
    key: Annotated[Path, typer.Option(help="The study-key.json that was written with it.")],
) -> None:
    """Count the choices of a blind study, with the methods' names."""
    with _model_errors():
        from evaluation import study

        preferences = study.tally(key, answers)
    table = Table("", "against", "chosen", "not", "cannot tell", "share", "95 %")
    for p in preferences:
        share = "" if p.share is None else f"{p.share:.0%}"
        interval = "" if p.interval is None else f"{p.interval[0]:.0%} to {p.interval[1]:.0%}"
        counts = (str(p.wins), str(p.losses), str(p.ties))
        table.add_row(escape(p.method), escape(p.against), *counts, share, interval)
    Console(highlight=False).print(table)


@contextmanager
def _model_errors() -> Iterator[None]:
    """Turns the errors of evaluation and model into the command's; checks that both are here."""
    errors.require("evaluate", "Evaluation")
    from evaluation.images import BadImages
    from evaluation.methods import BaselineUnavailable
    from evaluation.study import BadStudy
    from models.errors import InvalidOption, ModelError
    from worker.device import StartupError

    kinds: dict[type[Exception], type[CliError]] = {
        **dict.fromkeys((BadImages, BadStudy), InputError),
        **dict.fromkeys((BaselineUnavailable, InvalidOption, StartupError), BadSettings),
        ModelError: JobFailure,
    }
    try:
        with errors.translate(kinds):
            yield
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}.") from error


def _print_method(image: str, method: str) -> None:
    console.print(f"{image}: {method}", markup=False)


def _print_scores(scores: Comparison) -> None:
    from evaluation.metrics import METRICS, PAPER_SCORES

    settings = scores.settings
    table = Table(
        "",
        title=f"{settings['pictures']} images, x{settings['scale']}, {settings['steps']} steps, "
        f"seed {settings['seed']}, PSNR and SSIM on Y without {settings['border']} px of border",
        title_justify="left",
    )
    # The paper's other scores stand in the table too, where ours could not be measured.
    names = {*scores.metrics, *PAPER_SCORES["RealSR"]}
    metrics = [metric for metric in METRICS.values() if metric.name in names]
    for metric in metrics:
        arrow = "↑" if metric.higher_is_better else "↓"
        table.add_column(f"{metric.label} {arrow}", justify="right")
    table.add_column("s", justify="right")

    def cells(values: Mapping[str, float], absent: str) -> list[str]:
        return [f"{values[m.name]:.{m.digits}f}" if m.name in values else absent for m in metrics]

    for method in scores.methods:
        seconds = f"{scores.seconds(method):.2f}"
        table.add_row(escape(method), *cells(scores.means(method), "-"), seconds)
    table.add_section()
    for name, values in PAPER_SCORES.items():
        table.add_row(f"paper, {name}", *cells(values, ""), "", style="dim")
    out = Console(highlight=False)
    out.print(table)
    for name, why in scores.unavailable.items():
        out.print(f"{METRICS[name].label} is not measured: {why}", markup=False, soft_wrap=True)
    out.print("The paper's rows are of full-size networks on other images.", soft_wrap=True)
