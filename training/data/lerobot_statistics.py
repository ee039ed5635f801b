"""Statistics as LeRobot's `meta/stats.json` and episode tables hold them: a dict of lists for every feature."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...configuration.feature_statistics import QUANTILES, FeatureStatistics

IMAGE_SAMPLES = 100  # about so many frames an episode, evenly spaced, ...
IMAGE_SIDE = 128  # ... of about so many pixels a side count in image statistics (LeRobot samples alike)


def vector_statistics(values: ArrayLike) -> dict[str, list[Any]]:
    """Exact statistics of `values` (N, dim): mean, std, min, max, q01, q10, q90, q99 of each dim, and count."""
    statistics = asdict(FeatureStatistics.from_values(values))
    return {**statistics, "count": [statistics["count"]]}


def image_histogram(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each value 0-255 occurs in each channel of (a sample of) `frames` (T, h, w, 3): (3, 256), summable."""
    step, pixels = max(1, len(frames) // IMAGE_SAMPLES), max(1, max(frames.shape[1:3]) // IMAGE_SIDE)
    sample = frames[::step, ::pixels, ::pixels]
    return np.stack([np.bincount(sample[..., channel].reshape(-1), minlength=256) for channel in range(3)])


def image_statistics(histogram: NDArray[np.int64], count: int) -> dict[str, list[Any]]:
    """The statistics of `vector_statistics` for values in [0, 1], each of shape (3, 1, 1), of `count` frames."""
    values = np.arange(256) / 255
    weights = histogram / histogram.sum(1, keepdims=True)
    mean = weights @ values
    cumulative = np.cumsum(weights, 1)
    columns = {
        "mean": mean,
        "std": np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1)),
        "min": values[(histogram > 0).argmax(1)],
        "max": values[255 - (histogram[:, ::-1] > 0).argmax(1)],
        **{name: values[(cumulative >= quantile).argmax(1)] for name, quantile in QUANTILES.items()},
    }
    return {**{name: column.reshape(3, 1, 1).tolist() for name, column in columns.items()}, "count": [count]}


__all__ = ["image_histogram", "image_statistics", "vector_statistics"]
