"""Where in its image a token lies is told to every host, and to none that was made before."""

from __future__ import annotations

import pytest
import torch

from priorvla.modeling_priorvla.image_places import place_codes, placed


def test_codes_tell_every_place_apart_and_neighbours_are_alike() -> None:
    codes = place_codes(6, 8, 32)
    assert codes.shape == (48, 32) and codes.abs().max() <= 1
    distances = torch.cdist(codes, codes)
    apart = distances + 99 * torch.eye(48)
    assert apart.min() > 0.3
    beside, below, across = distances[0, 1], distances[0, 8], distances[0, 47]
    assert max(beside, below) < across
    torch.testing.assert_close(place_codes(2, 2, 30)[:, :28], place_codes(2, 2, 28))  # what is left over is zero


def test_the_same_place_has_the_same_code_in_every_camera_and_without_a_grid_there_is_none() -> None:
    tokens, cameras = torch.zeros(2, 3, 4, 16), torch.arange(3.0)[:, None].expand(3, 16)
    told = placed(tokens, cameras, (2, 2)).unflatten(1, (3, 4))
    torch.testing.assert_close(told[:, 1] - 1, told[:, 0])
    torch.testing.assert_close(told[0, 0], place_codes(2, 2, 16))
    torch.testing.assert_close(placed(tokens, cameras, None), cameras.repeat_interleave(4, 0).expand(2, -1, -1))


def test_images_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 tokens an image.*2 x 3.*image size"):
        placed(torch.zeros(1, 1, 4, 16), torch.zeros(1, 16), (2, 3))
