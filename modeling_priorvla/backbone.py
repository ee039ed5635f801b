"""Frozen vision and language encoders behind one interface of two phases: first the images, then the words.

`encode_vision` runs with no prompt anywhere near it; `encode_language` continues from its result. So what a
language-blind layer reads cannot depend on the instruction, to the bit, whatever backbone is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from ..configuration.backbone_reference import require_backbone_reference
from .packaged_backbones import packaged_backbone_folder

BACKBONE_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]


@dataclass
class VisionFeatures:
    """Patch tokens of C cameras with P patches each, camera after camera; class tokens are left out.

    hidden_states (B, C*P, d_v): zero where masked. mask (B, C*P) bool: true where a camera was present.
    """

    hidden_states: Tensor
    mask: Tensor
    num_cameras: int


@dataclass
class LanguageFeatures:
    """Token states of the instruction. hidden_states (B, L, d_t): zero at padding. mask (B, L) bool: true at tokens."""

    hidden_states: Tensor
    mask: Tensor


class DualEncoderBackbone(nn.Module):
    """Any vision and any text encoder, as transformers' `VisionTextDualEncoderModel` holds them; frozen.

    The two never see each other here: joining them is the policy's work. The weights stay in the dtype they were
    loaded in, in eval mode and without gradients; after `requires_grad_(True)` the module trains like any other.

    Args:
        model: the dual encoder.
        image_size: (height, width) in pixels of the images it will be given; the vision config's by default.
        sha256: of the weight files it was loaded from, None when it was built in memory.
    """

    def __init__(
        self,
        model: VisionTextDualEncoderModel,
        image_size: tuple[int, int] | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size or _pair(self.vision_config.image_size)
        self.sha256 = sha256
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
        keeps the checkpoint's. Raises OSError when it cannot be found, ValueError when it is not a dual encoder.
        """
        folder = Path(path_or_repo)
        if not folder.is_dir():
            folder = download_backbone(str(path_or_repo), revision, local_files_only)
        config = _read_config(folder)
        model = VisionTextDualEncoderModel.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            local_files_only=True,
        )
        return cls(model, image_size=_image_size(folder, config), sha256=weights_sha256(folder))

    @property
    def vision_config(self) -> Any:
        return self.model.config.vision_config

    @property
    def text_config(self) -> Any:
        return self.model.config.text_config

    @property
    def vision_hidden_size(self) -> int:
        return int(self.vision_config.hidden_size)

    @property
    def text_hidden_size(self) -> int:
        return int(self.text_config.hidden_size)

    @property
    def tokens_per_image(self) -> int:
        """P for an image of `image_size`."""
        return _patch_count(self.vision_config, self.image_size)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone stays in eval mode whatever its host does: dropout would spoil cached features."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def encode_vision(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None) -> VisionFeatures:
        """Images (B, C, 3, h, w) to patch tokens. What `pixel_attention_mask` (B, C) leaves out is not encoded at all.

        Raises ValueError on a wrong shape, or when the vision encoder returns no patch tokens (a convolutional one).
        """
        if pixel_values.ndim != 5 or pixel_values.shape[2] != 3:
            raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}, expected (B, C, 3, height, width)")
        batch, cameras = pixel_values.shape[:2]
        if pixel_attention_mask is None:
            present = torch.ones(batch, cameras, dtype=torch.bool, device=pixel_values.device)
        elif pixel_attention_mask.shape == (batch, cameras):
            present = pixel_attention_mask.bool()
        else:
            got = tuple(pixel_attention_mask.shape)
            raise ValueError(f"pixel_attention_mask has shape {got}, pixel_values ask for ({batch}, {cameras})")

        patches = _patch_count(self.vision_config, (pixel_values.shape[-2], pixel_values.shape[-1]))
        hidden_states = torch.zeros(
            batch, cameras, patches, self.vision_hidden_size, dtype=self.dtype, device=pixel_values.device
        )
        if present.any():
            tokens = self._patch_tokens(pixel_values[present], patches)  # (present cameras, P, d_v)
            hidden_states = hidden_states.to(tokens.dtype).masked_scatter(present[:, :, None, None], tokens)
        mask = present[:, :, None].expand(batch, cameras, patches)
        return VisionFeatures(hidden_states.flatten(1, 2), mask.flatten(1, 2), cameras)

    def encode_language(
        self, vision: VisionFeatures | None, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> LanguageFeatures:
        """Token ids (B, L) to token states, zero at padding. A dual encoder reads words alone: `vision` is not used.

        A prompt that stands in several rows is encoded once.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.bool()
        padded = input_ids.masked_fill(~mask, self.text_config.pad_token_id or 0)
        rows, row_of = torch.stack([padded, mask.long()], dim=1).unique(dim=0, return_inverse=True)
        output = self.model.text_model(input_ids=rows[:, 0], attention_mask=rows[:, 1])
        hidden_states = output.last_hidden_state[row_of].masked_fill(~mask[:, :, None], 0)
        return LanguageFeatures(hidden_states, mask)

    def _patch_tokens(self, images: Tensor, patches: int) -> Tensor:
        """(N, 3, h, w) -> (N, P, d_v): the last P tokens, behind class and register tokens."""
        vision_config = self.vision_config
        other_size = tuple(images.shape[-2:]) != _pair(vision_config.image_size)
        # DINOv2 interpolates its position embedding unasked; the other ViTs of transformers want to be told.
        unasked = vision_config.model_type.startswith("dinov2")
        options = {"interpolate_pos_encoding": True} if other_size and not unasked else {}
        hidden_states = self.model.vision_model(pixel_values=images.to(self.dtype), **options).last_hidden_state
        if hidden_states.ndim != 3 or hidden_states.shape[1] < patches:
            raise ValueError(
                f"vision encoder {vision_config.model_type!r} returned shape {tuple(hidden_states.shape)}, expected at "
                f"least {patches} patch tokens: use a ViT"
            )
        return hidden_states[:, hidden_states.shape[1] - patches :]


def load_backbone(
    reference: dict[str, Any] | None, override: str | os.PathLike[str] | nn.Module | None = None
) -> DualEncoderBackbone:
    """The backbone that a checkpoint's `config.backbone` refers to, checked to be the one it was trained with.

    Args:
        reference: `source` (`hub` or `package`), `name`, and optionally `revision`, `sha256`, `dtype`; see
            `describe_backbone`. None only together with `override`.
        override: a folder, a Hub repository or a module to take it from instead. The check stays, except for a module
            that was built in memory and so has no file to compare.

    Raises:
        ValueError: when neither is given, the reference is malformed, or the weights are not those of the reference.
        OSError: when the backbone cannot be found or downloaded.
        ImportError: when a packaged backbone's distribution is not installed.
    """
    dtype = reference.get("dtype") if reference else None
    if isinstance(override, DualEncoderBackbone):
        backbone = override
    elif isinstance(override, VisionTextDualEncoderModel):
        backbone = DualEncoderBackbone(override)
    elif isinstance(override, nn.Module):
        raise TypeError(f"backbone is a {type(override).__name__}, pass a VisionTextDualEncoderModel or a folder")
    elif override is None and reference is None:
        raise ValueError("the config names no backbone: pass backbone=<folder, Hub repository or module>")
    else:
        revision = reference.get("revision") if reference and override is None else None
        place = override if override is not None else _resolve(reference or {})
        backbone = DualEncoderBackbone.from_pretrained(place, revision=revision, dtype=dtype)
    if reference is not None:
        _require_same_weights(reference, backbone.sha256, override)
    return backbone


def describe_backbone(
    path: str | os.PathLike[str], *, source: str, name: str, revision: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """The reference (JSON) under which the backbone in folder `path` goes into `config.backbone`.

    Besides what `load_backbone` reads it tells the sizes a model must be built for: `vision_hidden_size`,
    `text_hidden_size`, `image_size`, `tokens_per_image`. Raises ValueError when `name` is a path or `source` unknown.
    """
    require_backbone_reference({"source": source, "name": name})
    folder = Path(path)
    config: Any = _read_config(folder)
    image_size = _image_size(folder, config)
    return {
        "source": source,
        "name": name,
        "revision": revision,
        "sha256": weights_sha256(folder),
        "dtype": dtype,
        "vision_hidden_size": config.vision_config.hidden_size,
        "text_hidden_size": config.text_config.hidden_size,
        "image_size": list(image_size),
        "tokens_per_image": _patch_count(config.vision_config, image_size),
    }


def weights_sha256(folder: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) over the bytes of `model*.safetensors` in `folder`, shards in the order of their names.

    Raises FileNotFoundError when there is none.
    """
    shards = sorted(Path(folder).glob("model*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"{folder}: no model.safetensors there; save the backbone with save_pretrained first")
    digest = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _resolve(reference: dict[str, Any]) -> str | Path:
    require_backbone_reference(reference)
    name: str = reference["name"]
    return packaged_backbone_folder(name) if reference["source"] == "package" else name


def _require_same_weights(reference: dict[str, Any], found: str | None, override: object) -> None:
    expected = reference.get("sha256")
    if expected is None or found is None or found == expected:
        return
    place = "the one passed as backbone=" if override is not None else "the one found there now"
    raise ValueError(
        f"backbone {reference.get('name')!r} has changed: the checkpoint was trained with weights of sha256 "
        f"{expected}, {place} has {found}. Pass backbone=<folder with the original weights>, pin its "
        "revision, or train anew"
    )


def download_backbone(repo: str, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The local snapshot folder of a backbone's Hub repository. Raises OSError when it cannot be had."""
    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=BACKBONE_FILES, local_files_only=local_files_only)
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"backbone {repo!r} (revision {revision or 'main'}) is no folder here and cannot be had from the Hub: "
            f"{error}. Pass backbone=<folder> to load it from a local copy"
        ) from error


def _read_config(folder: Path) -> VisionTextDualEncoderConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: a backbone folder needs a config.json")
    model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if model_type != VisionTextDualEncoderConfig.model_type:
        raise ValueError(
            f"{file}: model_type {model_type!r} is not {VisionTextDualEncoderConfig.model_type!r}: join a vision and a "
            "text encoder with VisionTextDualEncoderModel.from_vision_text_pretrained(...) and save that"
        )
    return VisionTextDualEncoderConfig.from_pretrained(folder, local_files_only=True)


def _image_size(folder: Path, config: Any) -> tuple[int, int]:
    file = folder / "preprocessor_config.json"
    if file.is_file():
        processing = json.loads(file.read_text(encoding="utf-8"))
        size = processing.get("crop_size" if processing.get("do_center_crop") else "size")
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
    return _pair(config.vision_config.image_size)


def _patch_count(vision_config: Any, image_size: tuple[int, int]) -> int:
    height, width = _pair(vision_config.patch_size)
    return (image_size[0] // height) * (image_size[1] // width)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


__all__ = [
    "DualEncoderBackbone",
    "LanguageFeatures",
    "VisionFeatures",
    "describe_backbone",
    "download_backbone",
    "load_backbone",
    "weights_sha256",
]
