"""Generative vision-language models: images first, words after them, and further tokens behind both.

Attention is causal, so what stands first never reads what comes later. The images go through the language model alone;
words continue from its keys and values, and what continues works on a copy of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .backbone_features import Backbone, BackboneShape, LanguageFeatures, VisionFeatures, present_cameras


@dataclass(frozen=True)
class Prefix:
    """What further tokens continue from: keys and values a layer, and mask (B, S) bool of the S tokens they are of."""

    keys_values: DynamicCache
    mask: Tensor


class ImageFrame(NamedTuple):
    """Ids of the constant tokens that a family puts around images: at the `start`, and `before` and `after` each."""

    start: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class GenerativeBackbone(Backbone):
    """A vision tower whose tokens a causal language model reads; taps are the language model's layers.

    The sequence is `[start] ([before] image [after]) * C [words] [tail]`. A camera that is absent and padding are
    masked keys, and positions are counted without them, so that they leave no gap.

    A subclass serves a family and says what is particular to it: `tokens_of`, `image_frame`, `image_tokens`.
    """

    model: Any
    frame: ImageFrame

    def __init__(self, model: Any, image_size: tuple[int, int] | None = None, sha256: str | None = None) -> None:
        super().__init__(model.base_model, image_size, sha256)  # without the language model's head
        self.frame = ImageFrame()  # a model built in memory brings no tokenizer that could name the tokens

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype | str) -> Self:
        backbone = super().from_folder(folder, dtype)
        backbone.frame = cls.image_frame(AutoTokenizer.from_pretrained(folder))
        return backbone

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "frame": self.frame}

    @classmethod
    def shape_of(cls, config: Any, image_size: tuple[int, int] | None = None) -> BackboneShape:
        require_whole_cache(config)
        width = config.text_config.hidden_size
        image_size = image_size or (config.vision_config.image_size,) * 2
        return BackboneShape(
            vision_hidden_size=width,
            text_hidden_size=width,
            num_layers=config.text_config.num_hidden_layers,
            image_size=image_size,
            tokens_per_image=cls.tokens_of(config, image_size),
            tail_hidden_size=width,
            language_reads_vision=True,
        )

    # --- what is particular to a family -------------------------------------------------------------------------------

    @classmethod
    def tokens_of(cls, config: Any, image_size: tuple[int, int]) -> int:
        """P of an image of (height, width) pixels. Raises ValueError for a size that it cannot be."""
        raise NotImplementedError

    @classmethod
    def image_frame(cls, tokenizer: Any) -> ImageFrame:
        """The constant tokens around images, in the ids of `tokenizer`."""
        raise NotImplementedError

    @property
    def language_model(self) -> PreTrainedModel:
        """Embeddings in, hidden states and cache out."""
        return cast(PreTrainedModel, self.model.text_model)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Images (N, 3, h, w) as embeddings (N, P, d) of the language model."""
        raise NotImplementedError

    # --- the two phases, and the tail ---------------------------------------------------------------------------------

    def encode_vision(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, taps: tuple[int, ...] | None = None
    ) -> VisionFeatures:
        taps = self.require_taps(taps)
        present = present_cameras(pixel_values, pixel_attention_mask)
        batch, cameras = present.shape
        tokens = self.tokens_of(self.model.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
        shape = (batch, cameras, tokens, self.vision_hidden_size)
        images = torch.zeros(shape, dtype=self.dtype, device=pixel_values.device)
        if present.any():
            seen = self.image_tokens(pixel_values[present].to(self.dtype))
            images = images.masked_scatter(present[:, :, None, None], seen.to(images.dtype))
        start, before, after = (self._embed_ids(ids, batch) for ids in self.frame)
        around = [part[:, None].expand(-1, cameras, -1, -1) for part in (before, after)]
        framed = torch.cat([around[0], images, around[1]], dim=2)  # (B, C, before + P + after, d)
        mask = torch.cat([present.new_ones(start.shape[:2]), present.repeat_interleave(framed.shape[2], dim=1)], dim=1)
        states, cache = self._continue(None, torch.cat([start, framed.flatten(1, 2)], dim=1), mask, taps)
        first = before.shape[1]
        states = states[:, :, start.shape[1] :].unflatten(2, framed.shape[1:3])[:, :, :, first : first + tokens]
        mask = present.repeat_interleave(tokens, dim=1)
        return VisionFeatures(_zero_where_masked(states.flatten(2, 3), mask), mask, cameras, taps, cache)

    def encode_language(
        self,
        vision: VisionFeatures | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> LanguageFeatures:
        """As `Backbone.encode_language`. Raises ValueError without the images, or when their cache was not kept."""
        if vision is None or vision.cache is None:
            raise ValueError(
                "the words of a generative backbone are read behind the images: pass the vision features that "
                "encode_vision returned for them (features from a feature cache do not hold the keys and values)"
            )
        taps = self.require_taps(taps)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        states, cache = self._continue(vision.cache, self.language_model.get_input_embeddings()(input_ids), mask, taps)
        return LanguageFeatures(_zero_where_masked(states, mask), mask, taps, cache)

    def encode_tail(self, language: LanguageFeatures, embeddings: Tensor) -> Tensor:
        """As `Backbone.encode_tail`; the further tokens see each other causally. ValueError without a cache."""
        if language.cache is None:
            raise ValueError("these language features hold no keys and values: pass what encode_language returned")
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        states, _ = self._continue(language.cache, embeddings.to(self.dtype), mask, (self.num_layers,))
        return states[:, 0]

    def _continue(
        self, prefix: Prefix | None, embeddings: Tensor, mask: Tensor, taps: tuple[int, ...]
    ) -> tuple[Tensor, Prefix]:
        """The language model over `embeddings` (B, N, d) behind `prefix`: taps (B, T, N, d), and both as a prefix."""
        if prefix is not None and len(prefix.mask) != len(mask):
            raise ValueError(f"{len(mask)} rows are to continue from {len(prefix.mask)}: repeat the fewer of them")
        seen = mask if prefix is None else torch.cat([prefix.mask, mask], dim=1)
        positions = (seen.long().cumsum(dim=1) - 1).clamp(min=0)
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=seen.long(),
            position_ids=positions[:, -mask.shape[1] :],
            past_key_values=None if prefix is None else _continuable(prefix.keys_values),
            use_cache=True,
            output_hidden_states=taps != (self.num_layers,),
        )
        if output.past_key_values is None or output.past_key_values.get_seq_length() != seen.shape[1]:
            raise ValueError(
                "the language model kept no keys and values to continue from: leave gradient checkpointing to the "
                "expert, the backbone cannot do with it"
            )
        tapped = [
            output.last_hidden_state if layer == self.num_layers else output.hidden_states[layer] for layer in taps
        ]
        return torch.stack(tapped, dim=1), Prefix(output.past_key_values, seen)

    def _embed_ids(self, ids: tuple[int, ...], batch: int) -> Tensor:
        """(B, number of ids, d)"""
        rows = torch.tensor([ids], dtype=torch.long, device=self.language_model.device)
        return cast(Tensor, self.language_model.get_input_embeddings()(rows)).expand(batch, -1, -1)


class Idefics3Backbone(GenerativeBackbone):
    """SmolVLM and Idefics3: SigLIP, whose patches are shuffled into fewer and wider tokens, before a Llama."""

    model_types = ("smolvlm", "idefics3")

    @classmethod
    def tokens_of(cls, config: Any, image_size: tuple[int, int]) -> int:
        side = config.vision_config.patch_size * config.scale_factor
        if image_size[0] != image_size[1] or image_size[0] % side:
            raise ValueError(
                f"{config.model_type!r} takes square images whose side is a multiple of {side} pixels, got "
                f"{image_size}: set max_image_size of its image processor"
            )
        return (image_size[0] // side) ** 2

    @classmethod
    def image_frame(cls, tokenizer: Any) -> ImageFrame:
        ids = tokenizer.get_vocab()
        fake, whole_image = (
            (ids[token],) if token in ids else () for token in ("<fake_token_around_image>", "<global-img>")
        )
        start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        return ImageFrame(start, fake + whole_image, fake)

    def image_tokens(self, images: Tensor) -> Tensor:
        # Not through get_image_features: that drops images of zeros alone, and a grey wall is one.
        return self.model.connector(self.model.vision_model(pixel_values=images).last_hidden_state)


def require_whole_cache(config: Any) -> None:
    """Raises ValueError when a layer of the language model does not keep every key, so that nothing could continue."""
    layers = DynamicCache(config=config.text_config).layers
    if partial := sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}):
        raise ValueError(
            f"the language model of {config.model_type!r} does not keep the keys of all tokens in every layer "
            f"({', '.join(partial)}): use one with full attention throughout"
        )


def _continuable(cache: DynamicCache) -> DynamicCache:
    """A cache that may grow while `cache` stays: a layer grows by rebinding its tensors, which are shared."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    return own


def _zero_where_masked(states: Tensor, mask: Tensor) -> Tensor:
    """States (B, T, N, d), zero where `mask` (B, N) is false."""
    return states.masked_fill(~mask[:, None, :, None], 0)


__all__ = ["GenerativeBackbone", "Idefics3Backbone", "ImageFrame", "Prefix", "require_whole_cache"]
