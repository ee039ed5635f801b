"""What can be said of chunks of motion by themselves: smoothness, spectrum, and how few numbers they can be told in.

Arrays in, numbers out; chunks are (N, H, D), complete, and in normalised units unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
JERK_STEPS = 4  # that a third difference needs


def rms_jerk(chunks: ArrayLike, rate: float) -> Floats:
    """Root mean square over time of the third difference of `chunks` (N, H, D) times `rate`^3, (N, D), in units / s^3.

    `rate` in Hz. Raises ValueError when the chunks are shorter than four steps.
    """
    chunks = np.asarray(chunks, dtype=np.float64)
    if chunks.shape[1] < JERK_STEPS:
        raise ValueError(f"jerk needs chunks of at least {JERK_STEPS} steps, got {chunks.shape[1]}")
    return np.sqrt(np.square(np.diff(chunks, n=3, axis=1) * rate**3).mean(axis=1))


def power_spectrum(chunks: ArrayLike, rate: float) -> tuple[Floats, Floats]:
    """`(frequencies (F,), power (F,))` of `chunks` (N, H, D) at `rate` Hz: mean over dims, median over windows.

    Each window and dim loses its straight line (least squares) and is weighted by a Hann window before the Fourier
    transform, or the jump from a chunk's end to its beginning would drown the rest (our choice). Zero frequency is left
    out. Raises ValueError when the chunks are shorter than four steps.
    """
    chunks = np.asarray(chunks, dtype=np.float64)
    steps = chunks.shape[1]
    if steps < JERK_STEPS:
        raise ValueError(f"a spectrum needs chunks of at least {JERK_STEPS} steps, got {steps}")
    line = np.stack([np.ones(steps), np.linspace(-1, 1, steps)], axis=1)  # (H, 2)
    rest = chunks - np.einsum("hk,nkd->nhd", line @ np.linalg.pinv(line), chunks)
    power = np.square(np.abs(np.fft.rfft(rest * np.hanning(steps + 2)[1:-1, None], axis=1)))
    frequencies: Floats = np.fft.rfftfreq(steps, 1 / rate).astype(np.float64)
    return frequencies[1:], np.median(power.mean(axis=2), axis=0)[1:]


def piecewise_linear(chunks: ArrayLike, knots: int) -> Floats:
    """`chunks` (N, H, D) as lines between `knots` evenly spaced points, fitted by least squares.

    One knot is each dim's mean over the chunk; as many knots as steps, or more, give the chunks back. Raises ValueError
    when there is no knot.
    """
    chunks = np.asarray(chunks, dtype=np.float64)
    steps = chunks.shape[1]
    if knots < 1:
        raise ValueError(f"a piecewise linear curve needs at least one knot, got {knots}")
    if knots >= steps:
        return chunks.copy()
    places = np.linspace(0, steps - 1, knots) if knots > 1 else np.zeros(1)
    hats = np.stack([np.interp(np.arange(steps), places, one) for one in np.eye(knots)], axis=1)  # (H, knots)
    return np.einsum("hk,nkd->nhd", hats @ np.linalg.pinv(hats), chunks)


@dataclass(frozen=True)
class PrincipalComponents:
    """A linear code of chunks: `mean` (H, D) and `directions` (K, H * D), orthonormal, the most telling first."""

    mean: Floats
    directions: Floats

    @classmethod
    def fit(cls, chunks: ArrayLike) -> PrincipalComponents:
        """All components that `chunks` (N, H, D) have, by singular value decomposition."""
        chunks = np.asarray(chunks, dtype=np.float64)
        mean = chunks.mean(axis=0)
        _, _, directions = np.linalg.svd((chunks - mean).reshape(len(chunks), -1), full_matrices=False)
        return cls(mean, directions)

    def reconstruct(self, chunks: ArrayLike, components: int) -> Floats:
        """`chunks` (N, H, D) from their first `components` coordinates."""
        chunks = np.asarray(chunks, dtype=np.float64)
        chosen = self.directions[:components]
        flat = (chunks - self.mean).reshape(len(chunks), -1)
        return (flat @ chosen.T @ chosen).reshape(chunks.shape) + self.mean


def effective_rank(values: ArrayLike) -> float:
    """How many dims `values` (N, F) spread over, from 1 to F: exp of the entropy of their variance's shares.

    Roy & Vetterli 2007, "The effective rank", of the covariance's eigenvalues; 0 when nothing varies.
    """
    shares = variance_shares(values)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def variance_shares(values: ArrayLike) -> Floats:
    """The share of the variance of `values` (N, F) in each principal direction (F,), largest first; zeros if none."""
    values = np.asarray(values, dtype=np.float64)
    powers = np.zeros(values.shape[1])
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    powers[: len(singular)] = np.square(singular)
    return powers / powers.sum() if powers.sum() > 1e-12 else np.zeros_like(powers)


def gaussian_velocity(noisy: ArrayLike, mean: ArrayLike, std: ArrayLike, times: ArrayLike) -> Floats:
    """The velocity guess of who knows each entry's `mean` and `std` (H, D) and nothing of how entries hang together.

    The linear least-squares estimate of v = e - a from x = (1 - tau) a + tau e, entry by entry: the optimum for
    independent Gaussian entries. `noisy` (N, H, D), `times` (N,) in (0, 1]. A prior that knows motion beats it.
    """
    noisy, mean, variance = np.asarray(noisy), np.asarray(mean), np.square(np.asarray(std))
    tau = np.asarray(times, dtype=np.float64)[:, None, None]
    gain = (tau - (1 - tau) * variance) / (tau**2 + (1 - tau) ** 2 * variance)
    return gain * (noisy - (1 - tau) * mean) - mean


__all__ = [
    "JERK_STEPS",
    "PrincipalComponents",
    "effective_rank",
    "gaussian_velocity",
    "piecewise_linear",
    "power_spectrum",
    "rms_jerk",
    "variance_shares",
]
