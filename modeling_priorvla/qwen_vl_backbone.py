"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .generative_backbone import GenerativeBackbone, ImageTokens
from .prompt_format import PromptFormat


class QwenVLBackbone(GenerativeBackbone):
    """A vision tower for images of any size, whose squares of patches become a token each, before a Qwen.

    A token has three positions: time, row and column (M-RoPE). Qwen3-VL adds what early layers of its tower saw behind
    the first layers of the language model too (deepstack).
    """

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    image_placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    position_axes = 3

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        side = _token_side(config)
        rows, columns = image_size[0] // side, image_size[1] // side
        if rows < 1 or columns < 1 or (rows * side, columns * side) != tuple(image_size):
            nearest = [side * max(1, round(pixels / side)) for pixels in image_size]
            raise ValueError(
                f"{config.model_type!r} takes images whose height and width are multiples of {side} pixels, got "
                f"{tuple(image_size)}: use image_size={nearest}"
            )
        return rows, columns

    @classmethod
    def image_size_of(cls, config: Any) -> tuple[int, int]:
        """A square of 8 x 8 tokens (our choice: the model takes any size and names none; SmolVLM has as many)."""
        return (8 * _token_side(config),) * 2

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        return PromptFormat(before="<|vision_start|>", after="<|vision_end|>")

    def image_tokens(self, images: Tensor) -> ImageTokens:
        vision = self.model.config.vision_config
        patches = patches_in_merge_order(
            images, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        size = [1, images.shape[2] // vision.patch_size, images.shape[3] // vision.patch_size]
        sizes = torch.tensor([size], device=images.device).expand(len(images), -1)
        seen = self.model.visual(patches, grid_thw=sizes)
        tokens, *deeper = (
            level.unflatten(0, (len(images), -1))
            for level in (seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ()))
        )
        return ImageTokens(tokens, tuple(deeper))

    def image_positions(self, grid: tuple[int, int]) -> tuple[Tensor, int]:
        """Time stands still; what follows continues behind the longer side."""
        row, column = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
        return torch.stack([torch.zeros_like(row), row, column]).flatten(1), max(grid)

    def truncate(self, last: int) -> None:
        """Levels of deepstack are dropped too, from the one behind layer `last`: a tap is what stands before it."""
        super().truncate(last)
        if last < self.num_layers and hasattr(self.model.visual, "deepstack_merger_list"):
            tower, added = self.model.visual, max(0, last - 1)
            tower.deepstack_visual_indexes = tower.deepstack_visual_indexes[:added]
            tower.deepstack_merger_list = tower.deepstack_merger_list[:added]


def patches_in_merge_order(images: Tensor, patch_size: int, merge_size: int, temporal_patch_size: int) -> Tensor:
    """Images (N, 3, h, w) as flat patches (N * patches, 3 * temporal_patch_size * patch_size ** 2).

    The `merge_size` x `merge_size` patches that become a token stand together, tokens row after row, image after image.
    A patch has `temporal_patch_size` frames: a still image, as often. `h` and `w` are multiples of `patch_size *
    merge_size`.
    """
    side = patch_size * merge_size
    tokens = images.unflatten(3, (-1, merge_size, patch_size)).unflatten(2, (images.shape[2] // side, merge_size, -1))
    patches = tokens.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, rows, columns, merge, merge, 3, patch, patch)
    frames = patches.unsqueeze(6).expand(*patches.shape[:6], temporal_patch_size, -1, -1)
    return frames.flatten(5).flatten(0, 4)


def _token_side(config: Any) -> int:
    """Pixels along a side of what one token shows."""
    return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)


__all__ = ["QwenVLBackbone", "patches_in_merge_order"]
