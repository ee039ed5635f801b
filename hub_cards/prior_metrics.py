"""A prior's headline numbers, body by body, as cards and the terminal show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What metrics.json calls it (before "/" and the body's name), and what a table does. In this order.
MEASURES = {
    "velocity_loss": "velocity loss",
    "reconstruction_error": "chunk error",
    "pca_error": "of PCA",
    "mean_chunk_error": "of the mean",
    "energy_distance": "energy distance",
    "energy_floor": "floor",
    "coverage": "coverage",
    "jerk_ratio": "jerk",
    "latent_rank": "latent dims",
}

Table = tuple[list[str], list[list[str]]]


def metrics_by_body(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], Table]:
    """`metrics` without those named `measure/body`, and these as a table: headings, and a row a body.

    Measures that no body has are left out of the table; names that are no measure of a prior stay with the others.
    """
    others: dict[str, Any] = {}
    bodies: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        measure, _, body = name.partition("/")
        if body and measure in MEASURES:
            bodies.setdefault(body, {})[measure] = value
        else:
            others[name] = value
    measured = [name for name in MEASURES if any(name in values for values in bodies.values())]
    rows = [[body, *(_shown(name, values.get(name)) for name in measured)] for body, values in bodies.items()]
    return others, (["body", *(MEASURES[name] for name in measured)], rows)


def _shown(measure: str, value: Any) -> str:
    if value is None:
        return "–"
    if measure == "coverage":
        return f"{value:.0%}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


__all__ = ["MEASURES", "metrics_by_body"]
