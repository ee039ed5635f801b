"""The plots that cards show, as PNG files: small, on white, and of the width of a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .card_pictures import SPECTRA, SUCCESS, VELOCITY
from .motion_plots import power_spectra, velocity_by_time
from .plots import success_by_task

DPI = 100  # 840 pixels: what the Hub shows of a card is about as wide
MOST_PANELS = 6  # bodies in one picture
PREDICTORS = {  # of a prior's report.json
    "own": "prior, told the latent",
    "null": "prior, told nothing",
    "gaussian": "mean and spread only",
    "zero": "no velocity",
}


def save_plot(figure: Figure, file: Path) -> None:
    """Writes a PNG on white (cards are read on dark pages, too), of the width that cards have."""
    figure.savefig(file, dpi=DPI, facecolor="white")


def save_prior_plots(report: Mapping[str, Any], folder: Path) -> None:
    """Of a prior's `report.json`: the loss of its velocity by flow time, and the spectra of its samples."""
    bodies = list(report.get("embodiments", {}).items())[:MOST_PANELS]
    if bodies:
        lines = {
            name: {label: body["velocity"]["by_time"][key] for key, label in PREDICTORS.items()}
            for name, body in bodies
        }
        save_plot(velocity_by_time(lines, bodies[0][1]["velocity"]["times"]), folder / VELOCITY)
    keys = ("frequencies", "data_power", "sample_power")
    spectra = {name: tuple(body["smoothness"][key] for key in keys) for name, body in bodies if body.get("smoothness")}
    if spectra:
        save_plot(power_spectra(spectra), folder / SPECTRA)


def save_success_plot(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Of the `evaluation` of `create_card`."""
    counts = {task: (row["successes"], row["trials"]) for task, row in evaluation["tasks"].items()}
    save_plot(success_by_task({"policy": counts}), folder / SUCCESS)


__all__ = ["save_plot", "save_prior_plots", "save_success_plot"]
