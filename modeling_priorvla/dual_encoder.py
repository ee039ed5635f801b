"""A vision encoder and a text encoder side by side: neither reads the other, joining them is the policy's work."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .backbone_features import (
    Backbone,
    BackboneShape,
    LanguageFeatures,
    VisionFeatures,
    interpolation,
    patch_grid,
    pooled_grid,
    present_cameras,
    side_lengths,
)


class DualEncoderBackbone(Backbone):
    """Any vision and any text encoder, as transformers' `VisionTextDualEncoderModel` holds them.

    Taps are the vision encoder's layers, class and register tokens left out of each. The text encoder's layers do not
    correspond to them, so its last output stands for all (our choice). A policy reads two thirds of the vision encoder
    (our choice: the packaged one's later layers say no more of where things are, see `benchmarks/feature_depth.py`).
    """

    model_types = ("vision-text-dual-encoder",)
    heads = frozenset({"visual_projection", "text_projection", "logit_scale", "pooler", "head", "mask_token"})
    final_norms = ("layernorm", "post_layernorm", "norm", "rms_norm")  # as vision encoders of transformers call theirs

    @classmethod
    def shape_of(
        cls, config: Any, image_size: tuple[int, int] | None = None, tokens_per_image: int | None = None
    ) -> BackboneShape:
        vision = config.vision_config
        image_size = image_size or side_lengths(vision.image_size)
        return BackboneShape(
            vision_hidden_size=vision.hidden_size,
            text_hidden_size=config.text_config.hidden_size,
            num_layers=vision.num_hidden_layers,
            policy_layers=max(1, round(2 / 3 * vision.num_hidden_layers)),
            image_size=image_size,
            image_grid=pooled_grid(cls.grid_of(config, image_size), tokens_per_image),
            tail_hidden_size=None,
            language_reads_vision=False,
        )

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        return patch_grid(image_size, config.vision_config.patch_size)

    def encode_vision(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, taps: tuple[int, ...] | None = None
    ) -> VisionFeatures:
        """As `Backbone.encode_vision`; ValueError also when there are no patch tokens (a convolutional encoder)."""
        taps = self.require_taps(taps)
        present = present_cameras(pixel_values, pixel_attention_mask)
        batch, cameras = present.shape
        grid = self.grid_of(self.model.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
        patches = prod(pooled_grid(grid, self.token_budget))
        hidden_states = torch.zeros(
            *(batch, cameras, len(taps), patches, self.vision_hidden_size), dtype=self.dtype, device=pixel_values.device
        )
        if present.any():
            tokens = self.pooled(self._patch_tokens(pixel_values[present], prod(grid), taps), grid)
            hidden_states = hidden_states.to(tokens.dtype).masked_scatter(present[:, :, None, None, None], tokens)
        mask = present[:, :, None].expand(batch, cameras, patches)
        return VisionFeatures(hidden_states.transpose(1, 2).flatten(2, 3), mask.flatten(1, 2), cameras, taps)

    def encode_language(
        self,
        vision: VisionFeatures | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> LanguageFeatures:
        """The last output of the text encoder, whatever `taps`; `vision` is not used.

        A prompt that stands in several rows is encoded once.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.bool()
        padded = input_ids.masked_fill(~mask, self.model.config.text_config.pad_token_id or 0)
        rows, row_of = torch.stack([padded, mask.long()], dim=1).unique(dim=0, return_inverse=True)
        output = self.model.text_model(input_ids=rows[:, 0], attention_mask=rows[:, 1])
        hidden_states = output.last_hidden_state[row_of].masked_fill(~mask[:, :, None], 0)
        return LanguageFeatures(hidden_states[:, None], mask, taps=None)

    def truncate(self, last: int) -> None:
        """Drops the vision encoder's layers above `last`, which nobody taps, and the final norm with them.

        An encoder in which they are not found, or which then sees something else, keeps them and works for nothing.
        """
        vision = self.model.vision_model
        stacks = [
            (owner, name)
            for owner in vision.modules()
            for name, child in owner.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == self.last_layer
        ]
        if last >= self.last_layer or len(stacks) != 1:
            return
        owner, name = stacks[0]
        replaced: list[tuple[nn.Module, str, nn.Module]] = [(owner, name, getattr(owner, name))]
        for above in (module for module in vision.modules() if owner in module.modules()):
            replaced += [(above, norm, getattr(above, norm)) for norm in self.final_norms if hasattr(above, norm)]
        whole, before = self.last_layer, self._probed(last)
        for parent, child, module in replaced:
            setattr(parent, child, module[:last] if isinstance(module, nn.ModuleList) else nn.Identity())
        self.last_layer = last
        after = self._probed(last)
        if not (before.is_meta or after.is_meta) and not torch.allclose(after, before, rtol=1e-3, atol=1e-3):
            for parent, child, module in replaced:
                setattr(parent, child, module)
            self.last_layer = whole

    @torch.no_grad()
    def _probed(self, layer: int) -> Tensor:
        """Tokens of a made-up image at a layer."""
        device = next(self.parameters()).device
        size = self.image_size
        ramp = torch.linspace(-2, 2, 3 * prod(size), device=device).view(1, 3, *size)
        return self._patch_tokens(ramp, prod(self.grid_of(self.model.config, size)), (layer,)).float()

    def _patch_tokens(self, images: Tensor, patches: int, taps: tuple[int, ...]) -> Tensor:
        """(N, 3, h, w) -> (N, T, P, d_v): the last P tokens, behind class and register tokens."""
        vision_config = self.model.config.vision_config
        output = self.model.vision_model(
            pixel_values=images.to(self.dtype),
            output_hidden_states=taps != (self.last_layer,),
            **interpolation(vision_config, images),
        )
        last = output.last_hidden_state
        if last.ndim != 3 or last.shape[1] < patches:
            raise ValueError(
                f"vision encoder {vision_config.model_type!r} returned shape {tuple(last.shape)}, expected at least "
                f"{patches} patch tokens: use a ViT"
            )
        tapped = [last if layer == self.last_layer else output.hidden_states[layer] for layer in taps]
        return torch.stack(tapped, dim=1)[:, :, last.shape[1] - patches :]


__all__ = ["DualEncoderBackbone"]
