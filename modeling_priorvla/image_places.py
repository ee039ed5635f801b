"""How a frozen backbone's tokens are taken in: on one scale, and told where in their image they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHORTEST, LONGEST = 0.25, 4.0  # wavelengths, in sides of an image


def taken_in(features: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Features (..., d) in `dtype`; with `normalize` each token by itself brought to mean 0 and variance 1, zeros left
    zeros.

    Backbones and their layers differ in scale more than tenfold, and what is small beside its place's code is learned
    late (our choice). Computed in float32, for deviations from 1e-4.
    """
    if normalize:
        features = nn.functional.layer_norm(features.float(), features.shape[-1:], eps=1e-10)
    return features.to(dtype)


def placed(tokens: Tensor, cameras: Tensor, grid: Sequence[int] | None) -> Tensor:
    """Tokens (B, C, P, d) with their camera's vector, of `cameras` (C, d), and their place's code, as (B, C P, d).

    An arm has to know where things are, and a frozen encoder owes nobody that its features say it (our choice). `grid`
    is the rows and columns of an image's tokens, in reading order; without it no places are told.

    Raises ValueError when an image has not as many tokens as `grid`.
    """
    tokens = tokens + cameras[:, None]
    if grid is not None:
        rows, columns = grid
        if rows * columns != tokens.shape[2]:
            raise ValueError(
                f"the features have {tokens.shape[2]} tokens an image, this model reads images of {rows} x {columns} "
                "(config.image_grid): use the image size and token budget that it was trained with"
            )
        tokens = tokens + place_codes(rows, columns, tokens.shape[-1], tokens.device).to(tokens)
    return tokens.flatten(1, 2)


def place_codes(rows: int, columns: int, size: int, device: torch.device | str | None = None) -> Tensor:
    """(rows x columns, size) in [-1, 1], float32: half of a code is sines and cosines of the row, half of the column.

    Wavelengths from a quarter of an image's side, which tells neighbours of an 8 x 8 grid apart, to four sides, which
    is nearly linear (our choice). Sides are taken for equally long, so that codes mean the same at any resolution.
    What is left of `size` over a multiple of four is zero.
    """
    pairs = size // 4
    wave = SHORTEST * (LONGEST / SHORTEST) ** torch.linspace(1, 0, max(pairs, 1), device=device)[:pairs]
    parts = []
    for count, shape in ((rows, (rows, 1, -1)), (columns, (1, columns, -1))):
        middle = (torch.arange(count, device=device) + 0.5) / count
        angle = 2 * math.pi * middle[:, None] / wave
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=-1).view(shape).expand(rows, columns, -1))
    codes = torch.cat(parts, dim=-1).flatten(0, 1)
    return nn.functional.pad(codes, (0, size - codes.shape[-1]))


__all__ = ["place_codes", "placed", "taken_in"]
