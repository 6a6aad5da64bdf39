"""Results as tables in Markdown, or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.results import Measurement, Result

HEADINGS = ("what", "case", "figures")


def tables(results: Sequence[Result]) -> str:
    """A heading and a table in Markdown for each machine, in the order of the results."""
    machines = dict.fromkeys(result.machine for result in results)
    return "\n\n".join(
        _section(machine, [r for r in results if r.machine == machine]) for machine in machines
    )


def _section(machine: str, results: Iterable[Result]) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS)]
    for result in results:
        versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
        subject = f"{result.subject} ({result.date}, {versions}; `{result.command}`)"
        by_case = groupby(result.measurements, lambda m: (m.variant, m.case))
        for number, ((variant, case), measurements) in enumerate(by_case):
            label = ", ".join(part for part in (variant, case) if part)
            figures = ", ".join(_figure(result, m) for m in measurements)
            rows.append(("" if number else subject, label, figures))
        for number, (name, why) in enumerate(result.failures.items(), len(result.measurements)):
            rows.append(("" if number else subject, name, f"ended early: {why}"))
    return "\n".join([f"## {machine}", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _figure(result: Result, measurement: Measurement) -> str:
    prefix = "more than " if measurement.at_least else ""
    words = f"{measurement.quantity} {prefix}{_value(measurement)}"
    ratio = result.ratio(measurement)
    if ratio is None:
        return words
    return f"{words} ({'< ' if measurement.at_least else ''}{ratio:.2f})"


def _value(measurement: Measurement) -> str:
    value, unit = measurement.value, measurement.unit
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    number = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return number if unit in ("score", "count") else f"{number} {unit}"


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """With `--json FILE`; without a file it is printed, for another build's command to read."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the result there; printed, if -"
    )
    return parser


def publish(result: Result, file: str | None) -> None:
    """Prints a table, or JSON, and writes the file of `--json`."""
    text = result.model_dump_json(indent=2)
    if file == "-":
        print(text)
        return
    print(tables([result]))
    if file is not None:
        Path(file).write_text(text + "\n")
