"""Generative vision-language models: images first, words after them, and further tokens behind both.

What stands first never reads what comes later. The images go through the language model alone; words continue from its
keys and values, and what continues works on a copy of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .backbone_features import (
    Backbone,
    BackboneShape,
    LanguageFeatures,
    VisionFeatures,
    patch_grid,
    pooled_grid,
    present_cameras,
    side_lengths,
)
from .prompt_format import PROMPTS, PromptFormat, chat_format, chat_template

# What a token sees beside what came before it: nothing; its whole image; all images, and as a word all words.
Attention = Literal["causal", "image", "prefix"]


@dataclass(frozen=True)
class Prefix:
    """What further tokens continue from: keys and values a layer, mask (B, S) bool of the S tokens they are of, and the
    position (B,) of the token that comes next."""

    keys_values: DynamicCache
    mask: Tensor
    next_position: Tensor


class ImageFrame(NamedTuple):
    """Ids of the constant tokens that a family puts around images: at the `start`, and `before` and `after` each."""

    start: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class ImageTokens(NamedTuple):
    """Embeddings (N, P, d) of images for the language model, and what is added to them behind its first layers."""

    embeddings: Tensor
    deeper: tuple[Tensor, ...] = ()


class GenerativeBackbone(Backbone):
    """A vision tower whose tokens a causal language model reads; taps are the language model's layers.

    The sequence is `[start] ([before] image [after]) * C [words] [tail]`. A camera that is absent and padding are
    masked keys, and positions are counted without them, so that they leave no gap. Images are pooled to a budget of
    tokens when they are given out: the model itself sees all of them (our choice: it was trained so).

    A subclass serves a family and says what is particular to it.
    """

    model: Any
    frame: ImageFrame
    auto_class = AutoModelForImageTextToText
    heads = frozenset({"head", "lm_head"})

    image_placeholder: ClassVar[str]  # what the family's chat template writes for an image
    position_axes: ClassVar[int] = 1  # of the language model's rotary embedding
    attention: ClassVar[Attention] = "causal"

    def __init__(
        self,
        model: Any,
        image_size: tuple[int, int] | None = None,
        sha256: str | None = None,
        tokens_per_image: int | None = None,
    ) -> None:
        super().__init__(model.base_model, image_size, sha256, tokens_per_image)  # without the language model's head
        self.frame = ImageFrame()  # a model built in memory brings no tokenizer that could name the tokens
        self.window = _sliding_window(self.model.config)

    def put_around_images(self, prompt: PromptFormat, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        parts = (prompt.start, prompt.before, prompt.after)
        self.prompt = prompt
        self.frame = ImageFrame(*(tuple(tokenizer.encode(part, add_special_tokens=False)) for part in parts))

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "frame": self.frame}

    @classmethod
    def shape_of(
        cls, config: Any, image_size: tuple[int, int] | None = None, tokens_per_image: int | None = None
    ) -> BackboneShape:
        require_whole_cache(config)
        width = config.text_config.hidden_size
        image_size = image_size or cls.image_size_of(config)
        return BackboneShape(
            vision_hidden_size=width,
            text_hidden_size=width,
            num_layers=config.text_config.num_hidden_layers,
            policy_layers=config.text_config.num_hidden_layers,
            image_size=image_size,
            image_grid=pooled_grid(cls.grid_of(config, image_size), tokens_per_image),
            tail_hidden_size=width,
            language_reads_vision=True,
        )

    @classmethod
    def prompt_format(cls, folder: Path, prompt: str | None) -> PromptFormat:
        """`chat` is the order of the chat template in `folder`, `raw` the family's without one; None is `chat` where
        there is a template that knows images. Raises ValueError on a prompt that is unknown or cannot be."""
        if prompt not in (None, *PROMPTS):
            raise ValueError(f"prompt={prompt!r} is unknown, use {' or '.join(PROMPTS)}")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        raw, template = cls.raw_prompt(tokenizer), chat_template(folder, tokenizer)
        if prompt != "raw" and template is not None and cls.image_placeholder in template:
            return chat_format(tokenizer, template, cls.image_placeholder, raw)
        if prompt == "chat":
            raise ValueError(f"{folder} has no chat template that knows images: use prompt='raw'")
        return raw

    # --- what is particular to a family -------------------------------------------------------------------------------

    @classmethod
    def image_size_of(cls, config: Any) -> tuple[int, int]:
        """(height, width) in pixels where nobody says another."""
        return side_lengths(config.vision_config.image_size)

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """As `Backbone.grid_of`; here a token a patch."""
        return patch_grid(image_size, config.vision_config.patch_size)

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        """The order without a chat template; `before` and `after` stand around images with one too."""
        raise NotImplementedError

    @property
    def language_model(self) -> PreTrainedModel:
        """Embeddings in, hidden states and cache out; has `layers` and `norm`."""
        return cast(PreTrainedModel, self.model.language_model)

    def image_tokens(self, images: Tensor) -> ImageTokens:
        """Images (N, 3, h, w) as the language model reads them."""
        raise NotImplementedError

    def image_positions(self, grid: tuple[int, int]) -> tuple[Tensor, int]:
        """Positions (axes, P) of an image's tokens, counted from its first, and by how many it moves what follows."""
        count = prod(grid)
        return torch.arange(count)[None], count

    # --- the two phases, and the tail ---------------------------------------------------------------------------------

    def encode_vision(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, taps: tuple[int, ...] | None = None
    ) -> VisionFeatures:
        taps = self.require_taps(taps)
        present = present_cameras(pixel_values, pixel_attention_mask)
        batch, cameras = present.shape
        grid = self.grid_of(self.model.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
        images = torch.zeros(
            *(batch, cameras, prod(grid), self.vision_hidden_size), dtype=self.dtype, device=pixel_values.device
        )
        deeper: tuple[Tensor, ...] = ()
        if present.any():
            seen, deeper = self.image_tokens(pixel_values[present].to(self.dtype))
            if seen.shape[1] != prod(grid):
                raise ValueError(
                    f"a {type(self.model).__name__} makes {seen.shape[1]} tokens of an image, its config says "
                    f"{grid[0]} x {grid[1]}: this adapter cannot serve it"
                )
            images = images.masked_scatter(present[:, :, None, None], seen.to(images.dtype))
        start, before, after = (self._embed_ids(ids, batch) for ids in self.frame)
        around = [part[:, None].expand(-1, cameras, -1, -1) for part in (before, after)]
        framed = torch.cat([around[0], images, around[1]], dim=2)  # (B, C, before + P + after, d)
        place = slice(before.shape[1], before.shape[1] + prod(grid))  # of the image in it
        is_image = torch.zeros(framed.shape[:3], dtype=torch.bool, device=framed.device)
        is_image[:, :, place] = present[:, :, None]
        mask = torch.cat([present.new_ones(start.shape[:2]), present.repeat_interleave(framed.shape[2], dim=1)], dim=1)
        positions, following = self._vision_positions(present, grid)
        states, cache = self._continue(
            None,
            torch.cat([start, framed.flatten(1, 2)], dim=1),
            mask,
            positions,
            following,
            taps,
            blocks=self._blocks_of_images(start.shape[1], cameras, framed.shape[2], place),
            **_behind_layers(deeper, torch.cat([torch.zeros_like(mask[:, : start.shape[1]]), is_image.flatten(1)], 1)),
        )
        states = states[:, :, start.shape[1] :].unflatten(2, framed.shape[1:3])[:, :, :, place]
        states = self.pooled(states, grid)  # (B, T, C, P, d)
        mask = present.repeat_interleave(states.shape[3], dim=1)
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
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        blocks = torch.zeros(input_ids.shape[1], dtype=torch.long) if self.attention == "prefix" else None
        states, cache = self._continue_in_line(vision.cache, embeddings, mask, taps, blocks)
        return LanguageFeatures(_zero_where_masked(states, mask), mask, taps, cache)

    def encode_tail(self, language: LanguageFeatures, embeddings: Tensor, tap: int | None = None) -> Tensor:
        """As `Backbone.encode_tail`; the further tokens see each other causally. ValueError without a cache."""
        if language.cache is None:
            raise ValueError("these language features hold no keys and values: pass what encode_language returned")
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        taps = self.require_taps(None if tap is None else (tap,))
        states, _ = self._continue_in_line(language.cache, embeddings.to(self.dtype), mask, taps)
        return states[:, 0]

    def truncate(self, last: int) -> None:
        """Drops the language model's layers above `last`, which nobody taps, and the final norm with them."""
        if last < self.last_layer:
            self.language_model.layers = cast(nn.ModuleList, self.language_model.layers)[:last]
            self.language_model.norm = nn.Identity()
            self.last_layer = last

    def _continue_in_line(
        self, prefix: Prefix, embeddings: Tensor, mask: Tensor, taps: tuple[int, ...], blocks: Tensor | None = None
    ) -> tuple[Tensor, Prefix]:
        """`_continue` with tokens that stand one behind the other."""
        if len(prefix.mask) != len(mask):
            raise ValueError(f"{len(mask)} rows are to continue from {len(prefix.mask)}: repeat the fewer of them")
        count = mask.long().cumsum(dim=1)
        positions = (prefix.next_position[:, None] + count - 1).clamp(min=0)
        following = prefix.next_position + count[:, -1]
        axes = positions.expand(self.position_axes, -1, -1)
        return self._continue(prefix, embeddings, mask, axes, following, taps, blocks)

    def _continue(
        self,
        prefix: Prefix | None,
        embeddings: Tensor,
        mask: Tensor,
        positions: Tensor,
        following: Tensor,
        taps: tuple[int, ...],
        blocks: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Prefix]:
        """The language model over `embeddings` (B, N, d) at `positions` (axes, B, N), behind `prefix`.

        Returns the taps (B, T, N, d), and both as a prefix, behind which comes the position `following` (B,). Tokens of
        one of the `blocks` (N,), -1 for none, see each other.
        """
        seen = mask if prefix is None else torch.cat([prefix.mask, mask], dim=1)
        if self.window is not None and seen.shape[1] > self.window:
            raise ValueError(
                f"images and words are {seen.shape[1]} tokens, layers of this language model see {self.window}: use "
                "fewer cameras or smaller images"
            )
        depth = self.last_layer
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=seen.long() if blocks is None else _mask_with_blocks(seen, blocks, embeddings.dtype),
            position_ids=positions if self.position_axes > 1 else positions[0],
            past_key_values=DynamicCache() if prefix is None else _continuable(prefix.keys_values),
            use_cache=True,
            output_hidden_states=taps != (depth,),
            **options,
        )
        cache = output.past_key_values
        if cache is None or (depth and cache.get_seq_length() != seen.shape[1]):
            raise ValueError(
                "the language model kept no keys and values to continue from: leave gradient checkpointing to the "
                "expert, the backbone cannot do with it"
            )
        tapped = [output.last_hidden_state if layer == depth else output.hidden_states[layer] for layer in taps]
        return torch.stack(tapped, dim=1), Prefix(cache, seen, following)

    def _vision_positions(self, present: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Positions (axes, B, N) of start and framed images, and the one (B,) behind the cameras that are there."""
        start, before, after = (torch.arange(len(ids), device=present.device) for ids in self.frame)
        image, advance = self.image_positions(grid)
        image = image.to(present.device) + len(before)
        axes = len(image)
        around = [part.expand(axes, -1) for part in (before, after + len(before) + advance)]
        framed = torch.cat([around[0], image, around[1]], dim=1)  # (axes, F)
        length = len(before) + advance + len(after)
        ahead = present.long().cumsum(dim=1)
        first = len(start) + length * (ahead - present.long())  # (B, C)
        positions = (first[:, :, None] + framed[:, None, None]).flatten(2)
        behind = len(start) + length * ahead[:, -1]
        return torch.cat([start.expand(axes, len(present), -1), positions], dim=2), behind

    def _blocks_of_images(self, start: int, cameras: int, framed: int, place: slice) -> Tensor | None:
        """Which of the tokens of start and framed images see each other, (N,); None where none do."""
        if self.attention == "causal":
            return None
        if self.attention == "prefix":
            return torch.zeros(start + cameras * framed, dtype=torch.long)
        blocks = torch.full((cameras, framed), -1)
        blocks[:, place] = torch.arange(cameras)[:, None]
        return torch.cat([torch.full((start,), -1), blocks.flatten()])

    def _embed_ids(self, ids: tuple[int, ...], batch: int) -> Tensor:
        """(B, number of ids, d)"""
        rows = torch.tensor([ids], dtype=torch.long, device=self.language_model.device)
        return cast(Tensor, self.language_model.get_input_embeddings()(rows)).expand(batch, -1, -1)


def shuffled_grid(config: Any, image_size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Rows and columns of an image's tokens where squares of `factor` x `factor` patches become one each.

    Raises ValueError when its patches do not make whole squares, or the image is none itself.
    """
    patch = side_lengths(config.vision_config.patch_size)[0]
    rows, columns = patch_grid(image_size, patch)
    if image_size[0] != image_size[1] or rows % factor:
        nearest = patch * factor * max(1, round(rows / factor))
        raise ValueError(
            f"{config.model_type!r} takes square images of a multiple of {factor} patches of {patch} pixels, got "
            f"{tuple(image_size)}: use an image size of {nearest}"
        )
    return rows // factor, columns // factor


def image_features(output: Any) -> Tensor:
    """What a `get_image_features` of transformers returned, as (N, P, d); releases differ in how they wrap it."""
    features = getattr(output, "pooler_output", output)
    return features if isinstance(features, Tensor) else torch.stack(list(features))


def require_whole_cache(config: Any) -> None:
    """Raises ValueError when a layer of the language model does not keep every key, so that nothing could continue.

    Sliding layers do, as long as the sequence is no longer than their window.
    """
    layers = DynamicCache(config=config.text_config).layers
    kept = (DynamicLayer, DynamicSlidingWindowLayer)
    if partial := sorted({type(layer).__name__ for layer in layers if type(layer) not in kept}):
        raise ValueError(
            f"the language model of {config.model_type!r} does not keep the keys of all tokens in every layer "
            f"({', '.join(partial)}): use one with attention throughout"
        )


def _sliding_window(config: Any) -> int | None:
    """How many tokens the layers with the shortest sight see; None where all see all."""
    layers = DynamicCache(config=config.text_config).layers
    return min((layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None)


def _behind_layers(deeper: tuple[Tensor, ...], is_image: Tensor) -> dict[str, Any]:
    """Arguments of the language model: what is added to tokens that are of an image, `is_image` (B, N)."""
    if not deeper:
        return {}
    return {"visual_pos_masks": is_image, "deepstack_visual_embeds": [tokens.flatten(0, 1) for tokens in deeper]}


def _mask_with_blocks(seen: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, N, S + N) to add to scores: causal, or within a block of `blocks` (N,), over keys that are `seen`."""
    blocks, count = blocks.to(seen.device), len(blocks)
    index = torch.arange(count, device=seen.device)
    ahead = seen.shape[1] - count
    own = (index[:, None] >= index) | ((blocks[:, None] == blocks) & (blocks >= 0))
    sees = torch.cat([own.new_ones(count, ahead), own], dim=1) & seen[:, None]
    sees[:, index, ahead + index] = True  # a softmax over nothing would not be a number
    return torch.zeros(sees.shape, dtype=dtype, device=seen.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def _continuable(cache: DynamicCache) -> DynamicCache:
    """A cache that may grow while `cache` stays: a layer grows by rebinding its tensors, which are shared."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    return own


def _zero_where_masked(states: Tensor, mask: Tensor) -> Tensor:
    """States (B, T, N, d), zero where `mask` (B, N) is false."""
    return states.masked_fill(~mask[:, None, :, None], 0)


__all__ = [
    "GenerativeBackbone",
    "ImageFrame",
    "ImageTokens",
    "Prefix",
    "image_features",
    "require_whole_cache",
    "shuffled_grid",
]
