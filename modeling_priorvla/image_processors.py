"""Image processors of transformers that make of every camera's picture one tensor of one size, with Pillow alone."""

from __future__ import annotations

from typing import Any, cast

import transformers
from transformers.image_processing_base import ImageProcessingMixin

# From its own module: the plain class wants torchvision, which the package does without.
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

# Processors that give images of any size as patches, packed one behind the other. Ours are all of one size, and packed
# by the backbone: what is taken over is how pixels are resampled and normalised.
PACKING = ("Qwen2VLImageProcessor",)


def load_image_processor(place: str, image_size: tuple[int, int] | None = None, **hub: Any) -> ImageProcessingMixin:
    """The image processor saved in a folder or Hub repository, in its version that computes with Pillow.

    By name and not through `AutoImageProcessor`: that prefers torchvision, and in transformers 5.17 cannot even be
    called without it. One that splits large images (Idefics3, SmolVLM) is told to make one square of each (our choice:
    a camera costs the same number of tokens whatever its resolution), and so are those that cut out further tiles.

    Args:
        image_size: (height, width) in pixels of what it makes. Where that is not its own size, it makes it of the whole
            picture, without a crop.

    Raises:
        ValueError: when the class has no Pillow version, or no size of its own and none is given.
    """
    settings, _ = ImageProcessingMixin.get_image_processor_dict(place, **hub)
    name = _plain_name(settings)
    if name in PACKING:
        return _of_one_size(place, settings, image_size)
    image_processor = getattr(transformers, f"{name}Pil", None)
    if image_processor is None:
        raise ValueError(f"{place}: image processor {name!r} has no Pillow version in transformers, use another one")
    loaded = cast(Any, image_processor.from_pretrained(place, **hub))
    for tiles in ("crop_to_patches", "do_pan_and_scan"):
        if getattr(loaded, tiles, False):
            setattr(loaded, tiles, False)
    if image_size == _made_size(settings):
        image_size = None
    if hasattr(loaded, "do_image_splitting"):
        if image_size is not None:
            loaded.max_image_size = {"longest_edge": max(image_size)}
        loaded.do_image_splitting, loaded.size = False, loaded.max_image_size
    elif image_size is not None:
        loaded.size = {"height": image_size[0], "width": image_size[1]}
        loaded.do_resize, loaded.do_center_crop = True, False
    return cast(ImageProcessingMixin, loaded)


def made_image_size(place: str) -> tuple[int, int] | None:
    """(height, width) that `load_image_processor` of a folder makes of every image; None when it does not say."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(place, local_files_only=True)
    except OSError:
        return None
    return None if _plain_name(settings) in PACKING else _made_size(settings)


def _made_size(settings: dict[str, Any]) -> tuple[int, int] | None:
    if longest := (settings.get("max_image_size") or {}).get("longest_edge"):
        return int(longest), int(longest)  # of the Idefics3 family: squares, since an image is never split
    size = settings.get("crop_size" if settings.get("do_center_crop") else "size")
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    return None


def _plain_name(settings: dict[str, Any]) -> str:
    return str(settings.get("image_processor_type")).removesuffix("Fast").removesuffix("Pil")


def _of_one_size(place: str, settings: dict[str, Any], image_size: tuple[int, int] | None) -> ImageProcessingMixin:
    if image_size is None:
        raise ValueError(f"{place}: its image processor leaves images their size, a batch has one: give image_size=")
    kept = ("resample", "rescale_factor", "image_mean", "image_std", "do_convert_rgb")
    return SiglipImageProcessorPil(
        size={"height": image_size[0], "width": image_size[1]},
        **{key: settings[key] for key in kept if settings.get(key) is not None},
    )


__all__ = ["load_image_processor", "made_image_size"]
