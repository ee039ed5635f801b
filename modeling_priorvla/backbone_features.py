"""What a backbone gives, and the interface of two phases that gives it: first the images, then the words.

`encode_vision` runs with no prompt anywhere near it; `encode_language` continues from its result. So what a
language-blind layer reads cannot depend on the instruction, to the bit, whatever backbone is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel

from .backbone_files import backbone_folder, backbone_model_type, weights_sha256
from .image_processors import made_image_size
from .prompt_format import PromptFormat

# Of a config: where the weights lie, what wrote them, and the dtype, which a backbone may be loaded in another than.
SAYS_NOTHING_OF_FEATURES = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass
class VisionFeatures:
    """Image tokens of C cameras with P tokens each, camera after camera, at T tapped layers; nothing else is in it.

    hidden_states (B, T, C*P, d_v): zero where masked. mask (B, C*P) bool: true where a camera was present. taps: the
    layers, ascending; 0 is the embeddings, `num_layers` the last layer's output after its final norm. cache: what
    `encode_language` continues from, where language reads vision; never saved.

    Raises ValueError when there are not as many layers as `taps`.
    """

    hidden_states: Tensor
    mask: Tensor
    num_cameras: int
    taps: tuple[int, ...]
    cache: Any = None

    def __post_init__(self) -> None:
        _require_layers(self.hidden_states, self.taps, "vision")

    def tap(self, layer: int) -> Tensor:
        """The tokens (B, C*P, d_v) at `layer`. Raises ValueError naming the layers there are."""
        return self.hidden_states[:, _tap_index(self.taps, layer, "vision")]


@dataclass
class LanguageFeatures:
    """Token states of the instruction at T tapped layers.

    hidden_states (B, T, L, d_t): zero at padding. mask (B, L) bool: true at tokens. taps: as of `VisionFeatures`; None
    where T is 1 and that one stands for every layer (a text encoder whose layers do not correspond to the vision
    encoder's: its last output, our choice). cache: what `encode_tail` continues from; never saved.

    Raises ValueError when there are not as many layers as `taps`.
    """

    hidden_states: Tensor
    mask: Tensor
    taps: tuple[int, ...] | None
    cache: Any = None

    def __post_init__(self) -> None:
        if self.taps is not None:
            _require_layers(self.hidden_states, self.taps, "language")

    def tap(self, layer: int) -> Tensor:
        """The tokens (B, L, d_t) at `layer`. Raises ValueError naming the layers there are."""
        return self.hidden_states[:, 0 if self.taps is None else _tap_index(self.taps, layer, "language")]


@dataclass(frozen=True)
class BackboneShape:
    """The sizes a model is built for; each is an attribute of the backbone too.

    Taps are numbered by `num_layers`; `policy_layers`, 1 to `num_layers`, are as many of the first as a policy uses
    unless it is told otherwise. image_size (height, width) in pixels; image_grid: rows and columns of the tokens of
    such an image, averaged over cells where a budget asks for fewer than the backbone makes; `tokens_per_image` is P,
    their product.
    tail_hidden_size: width of the tokens that `encode_tail` takes, None when the backbone takes none.
    language_reads_vision: whether the features of words depend on the images that they are said about.
    """

    vision_hidden_size: int
    text_hidden_size: int
    num_layers: int
    policy_layers: int
    image_size: tuple[int, int]
    image_grid: tuple[int, int]
    tail_hidden_size: int | None
    language_reads_vision: bool

    @property
    def tokens_per_image(self) -> int:
        return prod(self.image_grid)


class Backbone(nn.Module):
    """A pretrained model of transformers that sees, and then reads. An adapter a kind: see `load_backbone`.

    The weights stay in the dtype they were loaded in, in eval mode and without gradients, until `train_backbone` or
    `requires_grad_` says otherwise. The same weights and inputs give the same bits.

    Args:
        model: what does the work.
        image_size: (height, width) in pixels of the images it will be given; the config's by default.
        sha256: of the weight files it was loaded from, None when it was built in memory.
        tokens_per_image: at most so many image tokens are given out, see `pooled_grid`; None: all of them.
    """

    model_types: ClassVar[tuple[str, ...]]  # of transformers' configs, that the adapter serves
    auto_class: ClassVar[Any] = AutoModel  # what loads one of them whole
    heads: ClassVar[frozenset[str]] = frozenset()  # modules and parameters of `model` that no feature comes through

    vision_hidden_size: int
    text_hidden_size: int
    num_layers: int
    policy_layers: int
    image_size: tuple[int, int]
    image_grid: tuple[int, int]
    tokens_per_image: int
    tail_hidden_size: int | None
    language_reads_vision: bool

    def __init__(
        self,
        model: Any,
        image_size: tuple[int, int] | None = None,
        sha256: str | None = None,
        tokens_per_image: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.sha256 = sha256
        self.token_budget = tokens_per_image
        self.changes = False  # it is trained or was, or holds an adapter: features are not those of its file
        self.quantization: str | None = None  # see `quantize_backbone`
        self.prompt: PromptFormat | None = None  # what stands around images, where something does and is known
        shape = self.shape_of(model.config, image_size, tokens_per_image)
        for name, value in {**vars(shape), "tokens_per_image": shape.tokens_per_image}.items():
            setattr(self, name, value)
        self.last_layer = self.num_layers  # that can be tapped; see `truncate`
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a folder or a Hub repository: safetensors only, never remote code.

        The image size is that of the image processor saved beside the weights, else the vision config's. `dtype` None
        keeps the checkpoint's. Raises OSError when it cannot be found, ValueError when it is of another kind.
        """
        folder = backbone_folder(path_or_repo, revision, local_files_only)
        if (model_type := backbone_model_type(folder)) not in cls.model_types:
            raise ValueError(
                f"{folder}: model_type {model_type!r} is not one that {cls.__name__} takes "
                f"({', '.join(cls.model_types)}): use load_backbone, which finds the adapter"
            )
        return cls.from_folder(folder, dtype)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        dtype: torch.dtype | str | None = None,
        image_size: tuple[int, int] | None = None,
        tokens_per_image: int | None = None,
        prompt: str | PromptFormat | None = None,
    ) -> Self:
        """The adapter around the weights in `folder`, which is of its kind.

        `image_size` None is that of the image processor there; `prompt` (`chat`, `raw`): see `prompt_format`, whose
        result may be given too.
        """
        # refused before weights are read
        prompted = prompt if isinstance(prompt, PromptFormat) else cls.prompt_format(folder, prompt)
        options = {"use_safetensors": True, "local_files_only": True}
        model = cls.auto_class.from_pretrained(folder, dtype=dtype or "auto", **options)
        backbone = cls(model, image_size or made_image_size(str(folder)), weights_sha256(folder), tokens_per_image)
        if prompted is not None:
            backbone.put_around_images(prompted, folder)
        return backbone

    @classmethod
    def shape_of(
        cls, config: Any, image_size: tuple[int, int] | None = None, tokens_per_image: int | None = None
    ) -> BackboneShape:
        """What the model of a config will give. Raises ValueError when the adapter cannot serve it."""
        raise NotImplementedError

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of an image, before they are pooled. ValueError for a size it cannot be."""
        raise NotImplementedError

    @classmethod
    def prompt_format(cls, folder: Path, prompt: str | None) -> PromptFormat | None:
        """What stands around images and words, None where nothing does. Raises ValueError on an unknown `prompt`."""
        if prompt is not None:
            raise ValueError(
                f"prompt={prompt!r} is of generative backbones, a {cls.__name__} reads plain words: leave it out"
            )
        return None

    def put_around_images(self, prompt: PromptFormat, folder: Path) -> None:
        """From now on what `prompt` says stands around images, in the tokens of the tokenizer in `folder`."""
        raise NotImplementedError

    def is_unused(self, name: str) -> bool:
        """Whether no feature comes through the module or parameter `name` of `model`."""
        return bool(self.heads.intersection(name.split(".")))

    @property
    def dtype(self) -> torch.dtype:
        return next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of what features depend on beside inputs and dtype; None when it was built in memory.

        The weights alone do not tell: the same ones are read otherwise under another config.
        """
        if self.sha256 is None:
            return None
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()

    def _identity(self) -> dict[str, Any]:
        """JSON: what `fingerprint` is of."""
        config = json.loads(self.model.config.to_json_string(use_diff=False))
        quantized = {} if self.quantization is None else {"quantization": self.quantization}
        return {"weights": self.sha256, "config": _told_of_features(config), **quantized}

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone stays in eval mode whatever its host does: dropout would spoil cached features."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def encode_vision(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, taps: tuple[int, ...] | None = None
    ) -> VisionFeatures:
        """Images (B, C, 3, h, w) to image tokens at the layers `taps`, by default the last.

        What `pixel_attention_mask` (B, C) leaves out is not looked at. Raises ValueError on a wrong shape or tap.
        """
        raise NotImplementedError

    def encode_language(
        self,
        vision: VisionFeatures | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> LanguageFeatures:
        """Token ids (B, L), padded at either side, to token states at the layers `taps`, by default the last.

        `vision` may be None where `language_reads_vision` is false. Nothing of it is changed.
        """
        raise NotImplementedError

    def encode_tail(self, language: LanguageFeatures, embeddings: Tensor, tap: int | None = None) -> Tensor:
        """Hidden states (B, K, d) at layer `tap`, by default the last, of K further tokens that see all before them.

        They are given as `embeddings` (B, K, d), which gradients reach through frozen weights too. `language` stays as
        it is.
        """
        raise ValueError(f"{type(self).__name__} takes no further tokens: use tail='transformer'")

    def truncate(self, last: int) -> None:
        """Drops what only layers above `last` need, where that can be done: time and memory. Lower taps stay."""

    def pooled(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image tokens (..., rows x columns, d) averaged over cells, so that they are within the budget."""
        side = _cell_side(grid, self.token_budget)
        if side == 1:
            return tokens
        image = tokens.unflatten(-2, grid).movedim(-1, -3)  # (..., d, rows, columns)
        cells = nn.functional.avg_pool2d(image.flatten(0, -4), side, ceil_mode=True, count_include_pad=False)
        return cells.unflatten(0, image.shape[:-3]).flatten(-2).transpose(-1, -2)

    def require_taps(self, taps: tuple[int, ...] | None) -> tuple[int, ...]:
        """`taps`, by default the last layer. Raises ValueError unless they ascend from 0 to `last_layer`."""
        if taps is None:
            return (self.last_layer,)
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] > self.last_layer:
            dropped = "" if self.last_layer == self.num_layers else f" (the others of {self.num_layers} were dropped)"
            raise ValueError(f"taps are {tuple(taps)}, they must ascend and lie within 0 to {self.last_layer}{dropped}")
        return tuple(taps)


def interpolation(vision_config: Any, images: Tensor) -> dict[str, bool]:
    """What a vision encoder must be told to see `images` (N, 3, h, w) of another size than it was trained with."""
    trained = side_lengths(vision_config.image_size)
    # DINOv2 interpolates its position embedding unasked; the other ViTs of transformers want to be told.
    unasked = vision_config.model_type.startswith("dinov2")
    return {} if unasked or tuple(images.shape[-2:]) == trained else {"interpolate_pos_encoding": True}


def pooled_grid(grid: tuple[int, int], budget: int | None) -> tuple[int, int]:
    """Rows and columns of cells of k x k tokens, k the smallest with which they are at most `budget` (our choice).

    Cells at the lower and right edge are smaller where k does not divide the grid. Raises ValueError when `budget` is
    not positive.
    """
    side = _cell_side(grid, budget)
    return -(-grid[0] // side), -(-grid[1] // side)


def patch_grid(image_size: tuple[int, int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the whole patches in an image; what is left at its edges is not seen.

    Raises ValueError when there is none.
    """
    height, width = side_lengths(patch_size)
    rows, columns = image_size[0] // height, image_size[1] // width
    if not rows * columns:
        raise ValueError(
            f"images of {tuple(image_size)} pixels are smaller than a patch of {(height, width)}: enlarge them"
        )
    return rows, columns


def side_lengths(value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of what a config of transformers gives as one number or as two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _cell_side(grid: tuple[int, int], budget: int | None) -> int:
    if budget is not None and budget < 1:
        raise ValueError(f"tokens_per_image={budget} must be at least 1")
    side = 1
    while budget is not None and -(-grid[0] // side) * -(-grid[1] // side) > budget:
        side += 1
    return side


def present_cameras(pixel_values: Tensor, pixel_attention_mask: Tensor | None) -> Tensor:
    """Which images there are, (B, C) bool. Raises ValueError naming the shape that is wrong."""
    if pixel_values.ndim != 5 or pixel_values.shape[2] != 3:
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}, expected (B, C, 3, height, width)")
    batch, cameras = pixel_values.shape[:2]
    if pixel_attention_mask is None:
        return torch.ones(batch, cameras, dtype=torch.bool, device=pixel_values.device)
    if pixel_attention_mask.shape != (batch, cameras):
        got = tuple(pixel_attention_mask.shape)
        raise ValueError(f"pixel_attention_mask has shape {got}, pixel_values ask for ({batch}, {cameras})")
    return pixel_attention_mask.bool()


def _require_layers(hidden_states: Tensor, taps: tuple[int, ...], kind: str) -> None:
    if hidden_states.shape[1] != len(taps):
        raise ValueError(
            f"{kind} features of shape {tuple(hidden_states.shape)} hold {hidden_states.shape[1]} layers, but are said "
            f"to be of the layers {taps}: encode them with these taps"
        )


def _told_of_features(config: Any) -> Any:
    """A config, and the configs in it, without what says nothing of features."""
    if not isinstance(config, dict):
        return config
    return {key: _told_of_features(value) for key, value in config.items() if key not in SAYS_NOTHING_OF_FEATURES}


def _tap_index(taps: tuple[int, ...], layer: int, kind: str) -> int:
    if layer not in taps:
        raise ValueError(f"layer {layer} of the {kind} features was not tapped, there are: {', '.join(map(str, taps))}")
    return taps.index(layer)


__all__ = [
    "Backbone",
    "BackboneShape",
    "LanguageFeatures",
    "VisionFeatures",
    "interpolation",
    "patch_grid",
    "pooled_grid",
    "present_cameras",
    "side_lengths",
]
