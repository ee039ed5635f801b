"""How a frozen backbone's tokens are taken in: on one scale, and told where in their image they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHORTEST, LONGEST = 0.25, 4.0  # wavelengths, in sides of an image


def normalized(features: Tensor) -> Tensor:
    """Features (..., d), each token brought to mean 0 and variance 1: backbones and their layers differ in scale by far
    more than ten, and what is small beside its place's code is learned late (our choice)."""
    return nn.functional.layer_norm(features, features.shape[-1:])


def placed(tokens: Tensor, cameras: Tensor, grid: Sequence[int] | None) -> Tensor:
    """Tokens (B, C, P, d) with their camera's vector, of `cameras` (C, d), and their place's code, as (B, C P, d).

    The last layers of frozen ViTs keep places only roughly, and an arm has to know them (our choice). `grid` is the
    rows and columns of an image's tokens, in reading order; without it no places are told.

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
        tokens = tokens + place_codes(rows, columns, tokens.shape[-1]).to(tokens)
    return tokens.flatten(1, 2)


def place_codes(rows: int, columns: int, size: int) -> Tensor:
    """(rows x columns, size): a half of each code is the row's sines and cosines, a half the column's, as far as an odd
    number of pairs allows. Sides are taken for equally long, so that codes mean the same whatever the resolution."""
    pairs = size // 4
    wave = SHORTEST * (LONGEST / SHORTEST) ** torch.linspace(1, 0, max(pairs, 1))[:pairs]
    parts = []
    for count, shape in ((rows, (rows, 1, -1)), (columns, (1, columns, -1))):
        middle = (torch.arange(count) + 0.5) / count
        angle = 2 * math.pi * middle[:, None] / wave
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=-1).view(shape).expand(rows, columns, -1))
    codes = torch.cat(parts, dim=-1).flatten(0, 1)
    return nn.functional.pad(codes, (0, size - codes.shape[-1]))


__all__ = ["normalized", "place_codes", "placed"]
