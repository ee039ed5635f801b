"""The processor: images, words and raw robot numbers of a named embodiment to model inputs, and actions back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file, logging

from ..configuration.embodiment import EMBODIMENTS_FILE, Embodiment, load_embodiments, save_embodiments
from .adapter_places import HUB_ARGUMENTS
from .backbone import adapter_of
from .backbone_files import backbone_model_type, read_backbone_config
from .example_batching import (
    camera_frame,
    common_length,
    padded,
    require_equal_steps,
    split_examples,
    split_masks,
    step_mask,
)
from .image_processors import load_image_processor, made_image_size
from .prompt_format import WORDS

logger = logging.get_logger(__name__)

SAVED_SETTINGS = ("chunk_size", "max_text_length", "text_template")

CameraImages = Mapping[str, Any]  # camera name -> uint8 array (height, width, 3) or PIL image


class PriorVLAProcessor(ProcessorMixin):
    """Turns examples into the tensors of a batch, and predicted chunks into commands of the robot.

    An action prior needs neither `image_processor` nor `tokenizer`. Saved with every checkpoint, so that a policy
    normalises as its training did: `processor_config.json`, `embodiments.json`, and the tokenizer's files.

    Args:
        image_processor: a transformers image processor of one output size. None: images are refused.
        tokenizer: a transformers tokenizer. None: text is refused.
        embodiments: the robots, in the order of the models' embodiment ids; `Embodiment` or its `to_dict()`.
        chunk_size: H, steps in an action chunk.
        max_text_length: L, tokens of an instruction; all are padded to it (static shapes compile and cache), longer
            ones are cut with a warning (our choice).
        text_template: what stands around an instruction, `{}`, with every token that the model expects there. None: the
            words alone, with the special tokens that the tokenizer adds.

    Raises:
        ValueError: when two embodiments share a name, a length is not positive, or the template has no place for words.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        embodiments: Sequence[Embodiment | dict[str, Any]] = (),
        chunk_size: int = 16,
        max_text_length: int = 32,
        text_template: str | None = None,
    ) -> None:
        # ProcessorMixin.__init__ refuses absent parts, and all that it does is to set and check these attributes.
        self.chat_template = None
        self.image_processor, self.tokenizer = image_processor, tokenizer
        for name in ("image_processor", "tokenizer"):
            if getattr(self, name) is not None:
                self.check_argument_for_proper_class(name, getattr(self, name))
        for name, value in (("chunk_size", chunk_size), ("max_text_length", max_text_length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if text_template is not None and text_template.count(WORDS) != 1:
            raise ValueError(f"text_template={text_template!r} must have {WORDS} once, where the instruction stands")
        self.chunk_size, self.max_text_length, self.text_template = chunk_size, max_text_length, text_template
        self._embodiments = [e if isinstance(e, Embodiment) else Embodiment.from_dict(e) for e in embodiments]
        names = [embodiment.name for embodiment in self._embodiments]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"embodiment {twice[0]!r} is given {names.count(twice[0])} times, rename all but one")

    @classmethod
    def for_backbone(
        cls,
        folder: str | Path,
        embodiments: Sequence[Embodiment | dict[str, Any]],
        *,
        chunk_size: int = 16,
        max_text_length: int = 32,
        image_size: tuple[int, int] | None = None,
        prompt: str | None = None,
    ) -> Self:
        """A processor with the tokenizer and the image processor that lie in a backbone's `folder`.

        image_size: (height, width) in pixels; None: that of the image processor there, else the backbone's.
        prompt: what stands around an instruction, `chat` or `raw`, as of `describe_backbone`.
        """
        adapter = adapter_of(backbone_model_type(Path(folder)), str(folder))
        around = adapter.prompt_format(Path(folder), prompt)
        if image_size is None and made_image_size(str(folder)) is None:
            image_size = adapter.shape_of(read_backbone_config(Path(folder))).image_size
        return cls(
            load_image_processor(str(folder), image_size),
            AutoTokenizer.from_pretrained(folder),
            embodiments,
            chunk_size,
            max_text_length,
            None if around is None else around.text_template,
        )

    @property
    def embodiments(self) -> list[Embodiment]:
        return list(self._embodiments)

    @property
    def max_action_dim(self) -> int:
        """D: the models' action dims (`Embodiment.model_action_dim`) of the widest embodiment."""
        return max((embodiment.model_action_dim for embodiment in self._embodiments), default=0)

    @property
    def max_state_dim(self) -> int:
        """S: likewise of the states."""
        return max((embodiment.model_state_dim for embodiment in self._embodiments), default=0)

    @property
    def max_cameras(self) -> int:
        return max((len(embodiment.cameras) for embodiment in self._embodiments), default=0)

    def embodiment_id(self, name: str) -> int:
        """The id under which the models know the embodiment. Raises ValueError naming those that exist."""
        names = [embodiment.name for embodiment in self._embodiments]
        if name not in names:
            raise ValueError(
                f"embodiment {name!r} is unknown here, this processor has: {', '.join(names) or 'none'}. "
                "Pass one of them, or build the processor with it"
            )
        return names.index(name)

    def embodiment(self, name: str | None) -> Embodiment:
        """The embodiment of that name; None: the only one. Errors as `embodiment_id`, and where there are several."""
        if name is None and len(self._embodiments) != 1:
            names = ", ".join(embodiment.name for embodiment in self._embodiments) or "none"
            raise ValueError(f"no embodiment was given, and this processor has: {names}. Name one of them")
        return self._embodiments[0 if name is None else self.embodiment_id(name)]

    def with_embodiments(self, embodiments: Sequence[Embodiment]) -> PriorVLAProcessor:
        """A processor of these robots, in the order of the model's embodiment id; all else is as in this one."""
        settings = {name: getattr(self, name) for name in SAVED_SETTINGS}
        return type(self)(self.image_processor, self.tokenizer, list(embodiments), **settings)

    def __call__(  # type: ignore[override]  # a robot's processor takes more than images, text, videos and audio
        self,
        *,
        embodiment: str | Sequence[str],
        state: ArrayLike | None = None,
        actions: ArrayLike | None = None,
        states: ArrayLike | None = None,
        action_mask: ArrayLike | None = None,
        images: CameraImages | Sequence[CameraImages] | None = None,
        text: str | Sequence[str] | None = None,
        history_states: ArrayLike | None = None,
        history_actions: ArrayLike | None = None,
        history_mask: ArrayLike | None = None,
    ) -> BatchFeature:
        """One example or a list of B into a batch of torch tensors; what is not given is not in the batch.

        A single example (1-D state, dict of images, ...) makes B = 1. Lists may mix embodiments. D and S are the widest
        embodiment's dims, C its cameras; everything padded is zero. Raw values are in the embodiment's own units and
        dims. An embodiment that learns actions relative to the state (`needs_reference`) needs the state of a chunk's
        first step, `states[0]` or else `state`; a history's is that of its first real step.

        Args:
            embodiment: name, or one an example.
            state: (S_e,) proprioceptive state now.
            actions: (h, D_e), h <= `chunk_size` steps; shorter chunks are padded at the end.
            states: (h, S_e) of the same steps (what the trajectory encoder reads).
            action_mask: (h,) or (h, D_e) bool, true where real; everything by default. A rotation is real as a whole.
            images: camera name -> uint8 (height, width, 3) array or PIL image; a camera may be left out.
            text: instruction; one string serves all examples.
            history_states, history_actions, history_mask: (p, S_e), (p, D_e), (p,) bool of p past steps; shorter
                histories are padded at the start, to the longest of the batch.

        Returns:
            `embodiment_ids` (B,) long and `action_mask` (B, H, D) bool always (without actions: all H steps of the
            embodiment's own dims, as sampling wants it); `state` (B, S), `actions` (B, H, D), `states` (B, H, S),
            `pixel_values` (B, C, 3, h, w), `pixel_attention_mask` (B, C) bool, `input_ids` and `attention_mask` (B, L)
            long, `history_states` (B, p, S), `history_actions` (B, p, D), `history_mask` (B, p) bool.

        Raises:
            ValueError: unknown embodiment or camera, wrong dims, too many steps, a value that is not finite, arguments
                of different lengths, a state that is needed and not given, images or text without their processor.
            TypeError: an image that is not uint8.
        """
        given: dict[str, Any] = {
            "state": split_examples(state, 1, "state"),
            "actions": split_examples(actions, 2, "actions"),
            "states": split_examples(states, 2, "states"),
            "action_mask": split_masks(action_mask, actions),
            "images": [images] if isinstance(images, Mapping) else images,
            "text": None if isinstance(text, str) else text,
            "history_states": split_examples(history_states, 2, "history_states"),
            "history_actions": split_examples(history_actions, 2, "history_actions"),
            "history_mask": split_examples(history_mask, 1, "history_mask"),
        }
        parts = {name: list(value) for name, value in given.items() if value is not None}
        batch_size = common_length(parts if isinstance(embodiment, str) else {**parts, "embodiment": embodiment})
        names = [embodiment] * batch_size if isinstance(embodiment, str) else list(embodiment)
        bodies = [self.embodiment(name) for name in names]

        batch: dict[str, Tensor] = {"embodiment_ids": torch.tensor([self.embodiment_id(name) for name in names])}
        if "state" in parts:
            rows = [body.normalize_state(row) for body, row in zip(bodies, parts["state"], strict=True)]
            batch["state"] = padded(rows, (self.max_state_dim,))
        batch |= self._chunks(bodies, parts)
        batch |= self._history(bodies, parts)
        if "images" in parts:
            batch |= self._cameras(bodies, parts["images"])
        if text is not None:
            batch |= self._words([text] * batch_size if isinstance(text, str) else parts["text"])
        return BatchFeature(batch)

    def decode_actions(
        self, chunk: ArrayLike | Tensor, embodiment: str, state: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """A predicted chunk (..., H, D), normalised and padded, to the robot's own (..., H, D_e) in raw units.

        Actions come back in the kind (absolute, delta, relative) in which the data recorded them.

        Args:
            state: (S_e,), or (..., S_e) one a chunk: the raw state that the chunk was predicted from. Needed where
                actions are learned relative to it (`Embodiment.needs_reference`); elsewhere it only tells a quaternion
                its sign.

        Raises:
            ValueError: an unknown embodiment, other dims, a value that is not finite, or no state where it is needed.
        """
        body = self.embodiment(embodiment)
        array = chunk.detach().float().cpu().numpy() if isinstance(chunk, Tensor) else np.asarray(chunk)
        if array.ndim < 2 or array.shape[-1] not in (body.model_action_dim, self.max_action_dim):
            raise ValueError(
                f"chunk has shape {array.shape}, expected (..., H, {self.max_action_dim}): embodiment {embodiment!r} "
                f"has {body.model_action_dim} action dims, the widest has {self.max_action_dim}"
            )
        return body.denormalize_actions(array[..., : body.model_action_dim], state)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes the processor's files into a folder and returns their paths; `push_to_hub` uploads them afterwards."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        files = [str(folder / "processor_config.json"), str(save_embodiments(self._embodiments, folder))]
        if self._auto_class is not None:  # loaded from a checkpoint that brings its code: that goes along
            files += map(str, custom_object_save(self, folder, config=cast(Any, self)))
        self.to_json_file(files[0])
        if self.tokenizer is not None:
            self.tokenizer._set_processor_class(type(self).__name__)
            files += self.tokenizer.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:  # type: ignore[override]
        """Loads a folder or a Hub repository that `save_pretrained` wrote; the parts that were absent stay absent.

        Keyword arguments are those of the Hub (`revision`, `token`, `cache_dir`, `local_files_only`, ...) and overrides
        of `__init__`'s. Raises OSError when a file is missing, ValueError when one is malformed.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        place = str(pretrained_model_name_or_path)
        settings, _ = cls.get_processor_dict(place, **hub)
        overrides: dict[str, Any] = {name: kwargs[name] for name in ("embodiments", *SAVED_SETTINGS) if name in kwargs}
        if settings.get("image_processor") is not None:
            overrides.setdefault("image_processor", load_image_processor(place, **hub))
        if settings.get("tokenizer") is not None:
            # transformers' own class, whatever code the place brings: else its AutoConfig asks at the terminal.
            overrides.setdefault("tokenizer", AutoTokenizer.from_pretrained(place, trust_remote_code=False, **hub))
        if "embodiments" not in overrides:
            overrides["embodiments"] = load_embodiments(cast(str, cached_file(place, EMBODIMENTS_FILE, **hub)))
        saved: dict[str, Any] = {name: settings[name] for name in SAVED_SETTINGS if name in settings}
        return cls(**(saved | overrides))

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds: the lengths, the image processor's settings, the tokenizer's class."""
        tokenizer = None if self.tokenizer is None else type(self.tokenizer).__name__
        return {**super().to_dict(), "tokenizer": tokenizer}

    @property
    def model_input_names(self) -> list[str]:
        names = ["embodiment_ids", "state", "actions", "states", "action_mask", "pixel_values", "pixel_attention_mask"]
        return [*names, "input_ids", "attention_mask", "history_states", "history_actions", "history_mask"]

    def _chunks(self, bodies: list[Embodiment], parts: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`actions`, `states` and `action_mask`, all `chunk_size` steps long; masked actions are zero."""
        size = self.chunk_size
        masks = []
        for row, body in enumerate(bodies):
            lengths = {
                str(name): len(parts[name][row]) for name in ("actions", "states", "action_mask") if name in parts
            }
            require_equal_steps(lengths, f"example {row}")
            steps = next(iter(lengths.values()), size)
            if steps > size:
                raise ValueError(f"example {row} has {steps} steps, chunk_size is {size}: cut it, or raise chunk_size")
            mask = parts["action_mask"][row] if "action_mask" in parts else np.ones(steps, dtype=bool)
            masks.append(body.model_action_mask(step_mask(mask, steps, body.action_dim, f"example {row}")))
        batch = {"action_mask": padded(masks, (size, self.max_action_dim))}
        if "actions" in parts:
            rows = [
                body.normalize_actions(actions, _start_of_chunk(body, parts, row))
                for row, (body, actions) in enumerate(zip(bodies, parts["actions"], strict=True))
            ]
            batch["actions"] = padded(rows, (size, self.max_action_dim)).masked_fill(~batch["action_mask"], 0)
        if "states" in parts:
            rows = [body.normalize_state(row) for body, row in zip(bodies, parts["states"], strict=True)]
            batch["states"] = padded(rows, (size, self.max_state_dim))
        return batch

    def _history(self, bodies: list[Embodiment], parts: dict[str, list[Any]]) -> dict[str, Tensor]:
        names = ("history_states", "history_actions", "history_mask")
        if not any(name in parts for name in names):
            return {}
        if missing := [name for name in names[:2] if name not in parts]:
            raise ValueError(f"{missing[0]} is missing: a history needs states and actions of the same steps")
        masks = parts.get("history_mask") or [np.ones(len(row), dtype=bool) for row in parts["history_states"]]
        for row, group in enumerate(zip(parts["history_states"], parts["history_actions"], masks, strict=True)):
            require_equal_steps(dict(zip(names, map(len, group), strict=True)), f"example {row}")
        longest = max(len(mask) for mask in masks)
        masks = [np.asarray(mask, dtype=bool) for mask in masks]
        columns = zip(bodies, parts["history_states"], parts["history_actions"], masks, strict=True)
        states, actions = zip(*(_normalized_history(*column) for column in columns), strict=True)
        return {
            "history_states": padded(states, (longest, self.max_state_dim), at_start=True),
            "history_actions": padded(actions, (longest, self.max_action_dim), at_start=True),
            "history_mask": padded(masks, (longest,), at_start=True),
        }

    def _cameras(self, bodies: list[Embodiment], images: list[CameraImages]) -> dict[str, Tensor]:
        if self.image_processor is None:
            raise ValueError("images were given, this processor has no image_processor: leave them out (action prior)")
        present = torch.zeros(len(bodies), self.max_cameras, dtype=torch.bool)
        frames = []
        for row, (body, cameras) in enumerate(zip(bodies, images, strict=True)):
            if unknown := [camera for camera in cameras if camera not in body.cameras]:
                known = ", ".join(body.cameras) or "none"
                raise ValueError(f"embodiment {body.name!r} has no camera {unknown[0]!r}, its cameras are: {known}")
            for slot, camera in enumerate(body.cameras):
                if camera in cameras:
                    present[row, slot] = True
                    frames.append(camera_frame(cameras[camera], f"example {row}, camera {camera!r}"))
        blank = [] if frames else [np.zeros((8, 8, 3), dtype=np.uint8)]  # tells the output size when nothing else does
        pixels = self.image_processor(images=frames + blank, input_data_format="channels_last", return_tensors="pt")
        pixels = pixels["pixel_values"]
        if pixels.ndim == 5:  # (examples, images, 3, h, w) where a processor groups them, as SmolVLM's
            pixels = pixels.flatten(0, 1)
        if len(pixels) != len(frames + blank):
            raise ValueError(
                f"the image processor made {len(pixels)} images of {len(frames + blank)}: it must make one of each"
            )
        pixel_values = torch.zeros(*present.shape, *pixels.shape[1:], dtype=pixels.dtype)
        pixel_values[present] = pixels[: len(frames)]
        return {"pixel_values": pixel_values, "pixel_attention_mask": present}

    def _words(self, text: list[str]) -> dict[str, Tensor]:
        if self.tokenizer is None:
            raise ValueError("text was given, this processor has no tokenizer: leave it out (action prior)")
        for row, instruction in enumerate(text):
            if not isinstance(instruction, str):
                raise TypeError(f"text of example {row} is a {type(instruction).__name__}, pass a string")
        tokens = self.tokenizer(
            [self._within_length(instruction) for instruction in text],
            padding="max_length",
            truncation=True,
            max_length=self.max_text_length,
            add_special_tokens=self.text_template is None,
            return_tensors="pt",
        )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def _within_length(self, instruction: str) -> str:
        """The instruction in its template; of one that is too long its own last words are left out."""
        template, length = self.text_template, self.max_text_length
        plain = template is None

        def tokens_of(words: str) -> int:
            return len(self.tokenizer(words, add_special_tokens=plain, verbose=False)["input_ids"])

        text = instruction if template is None else template.replace(WORDS, instruction)
        count = tokens_of(text)
        if count > length:
            logger.warning_once(
                f"an instruction of {count} tokens is cut to max_text_length={length}: raise it if the end of the "
                "instruction matters"
            )
        if template is None:
            return text  # the tokenizer cuts
        words = self.tokenizer(instruction, add_special_tokens=False, verbose=False)["input_ids"]
        while count > length and words:
            words = words[: length - count]  # one token may be decoded and read again as two: until it fits
            text = template.replace(WORDS, self.tokenizer.decode(words))
            count = tokens_of(text)
        if count > length or (instruction.strip() and not words):
            raise ValueError(
                f"max_text_length={length} has no room for an instruction beside what stands around it: raise it"
            )
        return text


def _start_of_chunk(body: Embodiment, parts: dict[str, list[Any]], row: int) -> NDArray[Any] | None:
    """The raw state at the first step of example `row`, where the body's actions are learned relative to it."""
    if not body.needs_reference:
        return None
    if "states" in parts:
        return cast("NDArray[Any]", parts["states"][row][0])
    return parts["state"][row] if "state" in parts else None


def _normalized_history(
    body: Embodiment, states: NDArray[Any], actions: NDArray[Any], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Past states (p, Sm) and actions (p, Dm), zero where masked; only real steps are looked at."""
    normalized_states = np.zeros((len(mask), body.model_state_dim), dtype=np.float32)
    normalized_actions = np.zeros((len(mask), body.model_action_dim), dtype=np.float32)
    if mask.any():
        real = states[mask]
        normalized_states[mask] = body.normalize_state(real)
        normalized_actions[mask] = body.normalize_actions(actions[mask], real[0] if body.needs_reference else None)
    return normalized_states, normalized_actions


__all__ = ["PriorVLAProcessor"]
