"""What a client asks, read: openpi's keys to the observation of one embodiment, and its orders to its own session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment

# openpi's names for pictures, which say where a camera is and not which: the checkpoint's first and second.
POSITIONAL_KEYS = ("observation/image", "observation/wrist_image")
MAX_PROMPT = 2000  # characters; what a model reads is far shorter
MAX_SEED = 2**63 - 1
MAX_STEPS = 4096  # of a past; no model looks back so far
MAX_NORMALIZED = 1e6  # ranges of the training data; far beyond any sensor, and far below where float32 overflows


class BadRequestError(ValueError):
    """A message that is well-formed and no observation of this embodiment; says which key, and what to send."""


@dataclass(frozen=True)
class Request:
    """One request of a client.

    Attributes:
        observation: as policies take it: `state` (S,), `images` {camera: (h, w, 3) uint8}, `instruction`.
        reset: whether a new episode begins with it.
        seed: of the new episode's noise; None: the server's.
        executed: states (n, S) and actions (n, D) of the steps since the last request, None where it was not told.
        prefix: (P, D) actions that will be executed anyway, with which the chunk is to begin; see
            `PriorVLAPolicy.predict`.
    """

    observation: dict[str, Any]
    reset: bool
    seed: int | None
    executed: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    prefix: NDArray[np.float32] | None


class RequestReader:
    """Reads the messages of clients that drive `embodiment` in chunks of `chunk_size` steps.

    language: whether a prompt is needed.

    Keys, of which the first that is there counts:
        a camera's picture: `observation/images/<camera>`, `observation/<camera>`, `images: {<camera>: …}`, and for the
            first and the second camera `observation/image` and `observation/wrist_image`. RGB, uint8, (h, w, 3) or
            (3, h, w).
        the state: `observation/state`, `state`; (S,) numbers in the robot's own units.
        the words: `prompt`.
        ours: `reset`, `seed`, `executed/states`, `executed/actions`, `prefix/actions`; see `Request`.
    Other keys are left alone, as openpi's policies do.
    """

    def __init__(self, embodiment: Embodiment, chunk_size: int, language: bool) -> None:
        self._body, self._chunk_size, self._language = embodiment, chunk_size, language

    @property
    def positional_cameras(self) -> dict[str, str]:
        """Which camera each of openpi's own picture keys means here."""
        return dict(zip(POSITIONAL_KEYS, self._body.cameras, strict=False))

    def read(self, message: Any) -> Request:
        """Raises BadRequestError naming the key, what it holds and what to send instead."""
        if not isinstance(message, Mapping):
            raise BadRequestError(f"a request is a map of keys such as observation/state, not a {_kind(message)}")
        reset, seed = message.get("reset", False), message.get("seed")
        if not isinstance(reset, bool | np.bool_):
            raise BadRequestError(f"reset is a {_kind(reset)}: send true or false")
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
                raise BadRequestError("seed is no whole number from 0 below 2^63: send one, or leave it out")
            if not reset:
                raise BadRequestError("seed belongs to the beginning of an episode: send reset: true with it")
            seed = int(seed)
        observation = self._observation(message)
        prefix = self._prefix(message, observation["state"])
        return Request(observation, bool(reset), seed, self._executed(message), prefix)

    def _observation(self, message: Mapping[str, Any]) -> dict[str, Any]:
        key = "observation/state" if "observation/state" in message else "state"
        if key not in message:
            raise BadRequestError(f"observation/state is missing: send the {self._body.state_dim} numbers of the state")
        images = {camera: self._image(message, camera) for camera in self._body.cameras}
        state = _numbers(message[key], (self._body.state_dim,), key)
        self._require_plausible(key, self._body.normalize_state, state)
        observation = {"state": state, "images": images}
        return {**observation, "instruction": self._prompt(message)} if self._language else observation

    def _image(self, message: Mapping[str, Any], camera: str) -> NDArray[np.uint8]:
        nested = message.get("images", {})
        if not isinstance(nested, Mapping):
            raise BadRequestError(f"images is a {_kind(nested)}: send a map from camera to picture")
        keys = [f"observation/images/{camera}", f"observation/{camera}"]
        keys += [key for key, meant in self.positional_cameras.items() if meant == camera]
        for key in keys:
            if key in message:
                return _picture(message[key], key)
        if camera in nested:
            return _picture(nested[camera], f"images/{camera}")
        raise BadRequestError(f"camera {camera!r} is missing: send its picture as {' or '.join(keys)}")

    def _prompt(self, message: Mapping[str, Any]) -> str:
        prompt = message.get("prompt")
        if isinstance(prompt, np.ndarray) and prompt.ndim == 0:
            prompt = prompt.item()
        if not isinstance(prompt, str):
            told = "is missing" if prompt is None else f"is a {_kind(prompt)}"
            raise BadRequestError(f"prompt {told}: send the instruction as text")
        if len(prompt) > MAX_PROMPT:
            raise BadRequestError(f"prompt has {len(prompt)} characters: send at most {MAX_PROMPT}")
        return prompt

    def _executed(self, message: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        states, actions = message.get("executed/states"), message.get("executed/actions")
        if states is None and actions is None:
            return None
        if states is None or actions is None:
            raise BadRequestError("executed/states and executed/actions belong together: send both, a row a step")
        states = _numbers(states, (None, self._body.state_dim), "executed/states")
        actions = _numbers(actions, (len(states), self._body.action_dim), "executed/actions")
        if len(states):
            self._require_plausible("executed/states", self._body.normalize_state, states)
            self._require_plausible("executed/actions", self._body.normalize_actions, actions, states[0])
        return states, actions

    def _prefix(self, message: Mapping[str, Any], state: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if "prefix/actions" not in message:
            return None
        prefix = _numbers(message["prefix/actions"], (None, self._body.action_dim), "prefix/actions")
        if len(prefix) > self._chunk_size:
            raise BadRequestError(f"prefix/actions has {len(prefix)} steps: a chunk has {self._chunk_size}")
        if len(prefix):
            self._require_plausible("prefix/actions", self._body.normalize_actions, prefix, state)
        return prefix

    def _require_plausible(self, key: str, normalize: Callable[..., NDArray[Any]], *values: NDArray[Any]) -> None:
        """Refuses what no robot measures or does: the model would make no number of it, for the whole batch."""
        try:
            with np.errstate(over="ignore"):
                normalized = np.abs(normalize(*values))
        except ValueError as error:  # numbers that are no rotation
            raise BadRequestError(f"{key}: {error}") from None
        if not (normalized <= MAX_NORMALIZED).all():
            raise BadRequestError(
                f"{key} is more than {MAX_NORMALIZED:g} ranges of the training data away from them: send the units of "
                "the training data"
            )


def _numbers(value: Any, shape: tuple[int | None, ...], key: str) -> NDArray[np.float32]:
    """`value`, an array or lists, as float32 of `shape`, in which None admits up to `MAX_STEPS`."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise BadRequestError(f"{key} is no array of numbers: send {_shown(shape)}") from None
    if array.dtype.kind not in "iuf":
        raise BadRequestError(f"{key} is a {_kind(value)}: send {_shown(shape)} numbers")
    if array.ndim != len(shape) or any(want not in (None, got) for got, want in zip(array.shape, shape, strict=True)):
        raise BadRequestError(f"{key} has shape {array.shape}: send {_shown(shape)}")
    if array.size and len(array) > MAX_STEPS and shape[0] is None:
        raise BadRequestError(f"{key} has {len(array)} steps: send the last {MAX_STEPS}")
    with np.errstate(over="ignore"):  # too large for float32 is not finite
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise BadRequestError(f"{key} holds a value that is not finite: send numbers of the robot's own units")
    return array


def _picture(value: Any, key: str) -> NDArray[np.uint8]:
    """An (h, w, 3) view of a picture; where both readings are possible, (h, w, 3) is meant."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        remedy = ": multiply by 255 if it goes from 0 to 1, and" if _kind(value).startswith("float") else ":"
        raise BadRequestError(f"{key} is a {_kind(value)}{remedy} send uint8 from 0 to 255")
    if value.ndim != 3 or 3 not in (value.shape[0], value.shape[2]) or 0 in value.shape:
        raise BadRequestError(f"{key} has shape {value.shape}: send (height, width, 3) or (3, height, width), RGB")
    return value if value.shape[2] == 3 else value.transpose(1, 2, 0)


def _kind(value: Any) -> str:
    return f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('n' if size is None else str(size) for size in shape)}{',' if len(shape) == 1 else ''})"


__all__ = ["MAX_PROMPT", "POSITIONAL_KEYS", "BadRequestError", "Request", "RequestReader"]
