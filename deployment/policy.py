"""The robot side of a checkpoint: observations in, one action a control step out."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..configuration.embodiment import Embodiment
from ..hub_cards.embodiment_facts import made_up_state
from ..modeling_priorvla.adapter_places import HUB_ARGUMENTS
from ..modeling_priorvla.backbone import LanguageFeatures
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .action_limits import ActionGuard, ActionLimits, require_single_commands
from .command_counts import CommandCounts
from .compilation import compile_expert

WARM_UPS = 4
MOST_INSTRUCTIONS = 256  # whose encodings are kept
PICTURE = (224, 224)  # height and width of the pictures to warm up with: the processor makes its own size of any

Observation = Mapping[str, Any]  # "state" (S,), "images" {camera: (h, w, 3) uint8}, "instruction" str


@dataclass
class PolicySession:
    """What one running episode remembers: chunk queue, past window, its last commands, its own source of noise."""

    generator: torch.Generator
    guard: ActionGuard
    queue: deque[NDArray[np.float32]] = field(default_factory=deque)
    chunks: deque[NDArray[np.float32]] = field(default_factory=deque)  # what is left of each, where they are averaged
    states: deque[NDArray[np.float32]] = field(default_factory=deque)
    actions: deque[NDArray[np.float32]] = field(default_factory=deque)


class Policy(Protocol):
    """What an evaluation needs: sessions, and one action for each.

    One whose commands are kept within limits may have `command_counts(session) -> CommandCounts`, too.
    """

    embodiment: Embodiment

    def new_session(self, seed: int) -> Any: ...

    def act(self, sessions: Sequence[Any], observations: Sequence[Observation]) -> NDArray[np.float32]: ...


class PriorVLAPolicy:
    """Drives one embodiment with a `PriorVLAModel`: predicts a chunk, executes its first steps, looks again.

    An observation is `{"state": (S,) raw, "images": {camera: (h, w, 3) uint8}, "instruction": str}`; a vision-action
    prior needs no instruction. Everything that an episode remembers is in a `PolicySession`, never in the model:
    `select_action` uses a session of the policy's own, `act` any number of them in one batch.

    Args:
        model, processor: as `from_pretrained` loads them; the model has its backbone attached.
        embodiment: name, one of the checkpoint's; may be left out when there is only one.
        execute_steps: steps of a chunk that are executed before the next is predicted. Default: half of it.
        num_inference_steps: denoising steps; default the config's.
        limits: of what the robot may be told, or the file of them (`ActionLimits.from_file`); default none, but nothing
            that is not finite is ever returned.
        ensemble: predict at every step, and average what all chunks say of it, the one made i steps after the oldest
            with weight exp(-ensemble i) (temporal ensembling as in ACT, whose value is 0.01). Default: no averaging.
        compile: the expert runs compiled, which `warm_up` does before the first action; see `compile_expert`.
        seed: of the policy's own session. The same seed and observations give the same actions.

    Raises:
        ValueError: on an embodiment that the checkpoint does not know, embodiments on which config and processor
            disagree, a model without backbone, execute_steps outside [1, chunk_size] or beside `ensemble`, or limits
            that do not fit the robot.
        RuntimeError: to compile, and there is no compiler.
    """

    def __init__(
        self,
        model: PriorVLAModel,
        processor: PriorVLAProcessor,
        *,
        embodiment: str | None = None,
        execute_steps: int | None = None,
        num_inference_steps: int | None = None,
        limits: ActionLimits | str | os.PathLike[str] | None = None,
        ensemble: float | None = None,
        compile: bool = False,  # noqa: A002, torch's word for it
        seed: int = 0,
    ) -> None:
        model.config.expert.require_embodiments(processor.embodiments)
        if model.backbone is None:
            raise ValueError(
                "no backbone is attached, so the policy could neither see nor read: load with backbone=<folder>, or "
                "call model.attach_backbone()"
            )
        chunk_size = model.config.expert.chunk_size
        self.model, self.processor = model.eval(), processor
        self.embodiment = processor.embodiment(embodiment)
        whole = max(1, chunk_size // 2) if ensemble is None else 1
        self.execute_steps = whole if execute_steps is None else execute_steps
        if not 1 <= self.execute_steps <= chunk_size:
            raise ValueError(f"execute_steps={execute_steps} must be between 1 and the chunk's {chunk_size} steps")
        if ensemble is not None:
            _require_averageable(self.embodiment, ensemble, execute_steps)
        self.num_inference_steps, self.ensemble = num_inference_steps, ensemble
        if limits is not None and not isinstance(limits, ActionLimits):
            limits = ActionLimits.from_file(os.fspath(limits), self.embodiment)
        self.limits = limits
        self.compiled = compile
        if compile:
            compile_expert(model)
        self._language: dict[tuple[str, torch.device], LanguageFeatures] = {}
        self.reset(seed)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: Any = "auto",
        backbone_quantization: str | None = "auto",
        device: str = "cpu",
        **arguments: Any,
    ) -> Self:
        """Loads model and processor from a folder or Hub id.

        `arguments` are the constructor's, and those of the Hub: `revision`, `token`, `cache_dir`, `local_files_only`...
        """
        hub = {name: arguments.pop(name) for name in HUB_ARGUMENTS if name in arguments}
        model = PriorVLAModel.from_pretrained(
            path, backbone=backbone, backbone_quantization=backbone_quantization, **hub
        )
        model.to(device)
        return cls(model, PriorVLAProcessor.from_pretrained(path, **hub), **arguments)

    def reset(self, seed: int = 0) -> None:
        """Forgets the episode; call before every new one."""
        self._session = self.new_session(seed)

    def new_session(self, seed: int) -> PolicySession:
        """Memory for one more episode; the same seed gives the same noise, however sessions are batched."""
        return PolicySession(torch.Generator().manual_seed(seed), ActionGuard(self.limits, self.embodiment))

    def warm_up(self, batch_size: int = 1, prefix_steps: int | None = 0) -> float:
        """Predicts from made-up observations, so that nothing is slow later; no session notices it.

        `prefix_steps` of a chunk are known. What is to be compiled is compiled, with and without a prefix, alone and in
        a batch; None: no chunk will ever begin with a prefix, and nothing is compiled for that. Returns the seconds of
        a prediction, the median of three after the first.
        """
        pictures = {camera: np.zeros((*PICTURE, 3), np.uint8) for camera in self.embodiment.cameras}
        observation = {"state": made_up_state(self.embodiment), "images": pictures, "instruction": "wait"}

        def predict(size: int, prefix: NDArray[np.float32] | None) -> NDArray[np.float32]:
            sessions = [self.new_session(0) for _ in range(size)]
            return self.predict(sessions, [observation] * size, None if prefix is None else [prefix] * size)

        chunk = predict(1, None)[0]
        for size in sorted({1, batch_size}) if self.compiled else ():  # alone first: then a batch is of any size
            for prefix in (None,) if prefix_steps is None else (None, chunk[:1]):
                predict(size, prefix)
        seconds = []
        for _ in range(WARM_UPS):
            started = time.perf_counter()
            predict(batch_size, chunk[:prefix_steps] if prefix_steps else None)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    def select_action(self, observation: Observation) -> NDArray[np.float32]:
        """The next action (D_robot,) in raw units. Raises as `act`, after which `hold` still answers."""
        return self.act([self._session], [observation])[0]

    def hold(self) -> NDArray[np.float32]:
        """The command (D_robot,) that keeps the robot where it is, after an error of `select_action` or in a pause.

        What is left of the chunk is thrown away: the next action is of a new one, from what is seen then. Raises
        ValueError before an episode's first action.
        """
        _drop_plans(self._session)
        return self._session.guard.hold()

    def predict_chunk(self, observation: Observation) -> NDArray[np.float32]:
        """A whole chunk (H, D_robot) in raw units; leaves the queue alone."""
        return self.predict([self._session], [observation])[0]

    def act(self, sessions: Sequence[PolicySession], observations: Sequence[Observation]) -> NDArray[np.float32]:
        """One action (N, D_robot) for each of N sessions; those whose queue is empty are predicted in one batch.

        Raises:
            ValueError: when an action may not be sent (`ActionGuard.apply`): its session's chunk is thrown away, and
                no session has moved on. Or when actions were recorded relative to a chunk's start, or an observation to
                predict from has not every camera of the robot (None: that one is masked) or no picture at all.
        """
        require_single_commands(self.embodiment)
        hungry = [index for index, session in enumerate(sessions) if not session.queue]
        for index in hungry:
            self._require_pictures(observations[index])
        if hungry:
            chunks = self.predict([sessions[i] for i in hungry], [observations[i] for i in hungry])
            for index, chunk in zip(hungry, chunks, strict=True):
                sessions[index].queue.extend(self._next(sessions[index], chunk))
        guards, actions = [session.guard.copy() for session in sessions], []
        for session, guard, observation in zip(sessions, guards, observations, strict=True):
            try:
                actions.append(guard.apply(session.queue[0], observation["state"]))
            except ValueError:
                _drop_plans(session)
                raise
        for session, guard, observation, action in zip(sessions, guards, observations, actions, strict=True):
            session.guard = guard
            session.queue.popleft()
            self.remember(session, observation, action)
        return np.stack(actions)

    def command_counts(self, session: PolicySession) -> CommandCounts:
        """What limits have done to the session's commands."""
        return session.guard.counts

    def _require_pictures(self, observation: Observation) -> None:
        images, cameras = observation.get("images", {}), self.embodiment.cameras
        missing = sorted(set(cameras) - set(images))  # by names alone: simulators draw a picture when it is looked at
        if missing or (cameras and all(images[camera] is None for camera in cameras)):
            raise ValueError(
                f"embodiment {self.embodiment.name!r} sees with {', '.join(cameras)}, the observation has no picture "
                f"of {', '.join(missing or cameras)}: a robot is not driven blindly (hold() keeps it where it is)"
            )

    def _next(self, session: PolicySession, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """The actions to execute before the next prediction."""
        if self.ensemble is None:
            return chunk[: self.execute_steps]
        session.chunks.append(chunk)
        weights = np.exp(-self.ensemble * np.arange(len(session.chunks)))
        action = np.average([own[0] for own in session.chunks], axis=0, weights=weights)
        session.chunks = deque(own[1:] for own in session.chunks if len(own) > 1)
        return action.astype(np.float32)[None]

    def remember(self, session: PolicySession, observation: Observation, action: NDArray[np.float32]) -> None:
        """Notes what was seen and done in a step, for a model that is conditioned on its past.

        In the place of a state that is not finite stands the one before; without any the step is left out.
        """
        if not self.model.config.use_history:
            return
        state = np.array(observation["state"], dtype=np.float32)  # a copy: drivers use their buffers again
        if not np.isfinite(state).all():
            if not session.states:
                return
            state = session.states[-1]
        session.states.append(state)
        session.actions.append(action)
        if len(session.actions) > self.model.config.history_size:
            session.states.popleft()
            session.actions.popleft()

    def predict(
        self,
        sessions: Sequence[PolicySession],
        observations: Sequence[Observation],
        prefixes: Sequence[NDArray[np.float32] | None] | None = None,
    ) -> NDArray[np.float32]:
        """Chunks (N, H, D_robot) in raw units, in one batch; queues are left alone.

        `prefixes`: for each session (P, D_robot) raw actions that will be executed anyway, P <= H, or None. Its chunk
        begins with them and goes on from them; priors and policies are trained for that (`prefix_probability`).
        """
        device = self.model.device
        body = torch.tensor([self.processor.embodiment_id(self.embodiment.name)])
        noise = [self.model.draw_noise(body, session.generator) for session in sessions]
        states = np.stack([np.asarray(observation["state"]) for observation in observations])
        seen = [{name: own for name, own in one["images"].items() if own is not None} for one in observations]
        inputs = self.processor(
            embodiment=self.embodiment.name,
            state=states,
            images=seen,
            **self._history(sessions),
        ).to(device)
        chunk = self.model.sample_actions(
            **inputs,
            **self._words(observations),
            **self._known(prefixes or [None] * len(sessions), states),
            noise=torch.cat(noise).to(device),
            num_inference_steps=self.num_inference_steps,
        )
        actions = self.processor.decode_actions(chunk, self.embodiment.name, state=states)
        for row, prefix in enumerate(prefixes or ()):
            if prefix is not None:
                actions[row, : len(prefix)] = prefix  # without the rounding of there and back
        return actions

    def _known(self, prefixes: Sequence[NDArray[np.float32] | None], states: NDArray[Any]) -> dict[str, Tensor]:
        """What of each chunk is known, as the model has it."""
        length = max(0 if prefix is None else len(prefix) for prefix in prefixes)
        if not length:
            return {}
        body = self.embodiment
        known = torch.zeros(len(prefixes), length, self.processor.max_action_dim)
        for row, prefix in enumerate(prefixes):
            if prefix is not None and len(prefix):
                reference = states[row] if body.needs_reference else None
                values = torch.from_numpy(body.normalize_actions(prefix, reference))
                known[row, : len(prefix), : body.model_action_dim] = values
        lengths = torch.tensor([0 if prefix is None else len(prefix) for prefix in prefixes])
        device = self.model.device
        return {"prefix_actions": known.to(device), "prefix_length": lengths.to(device)}

    def _history(self, sessions: Sequence[PolicySession]) -> dict[str, Any]:
        """The past windows (N, H_hist, ·), padded in front."""
        if not self.model.config.use_history:
            return {}
        size = self.model.config.history_size
        states = np.zeros((len(sessions), size, self.embodiment.state_dim), dtype=np.float32)
        actions = np.zeros((len(sessions), size, self.embodiment.action_dim), dtype=np.float32)
        mask = np.zeros((len(sessions), size), dtype=bool)
        for row, session in enumerate(sessions):
            if count := len(session.actions):
                states[row, size - count :] = np.stack(session.states)
                actions[row, size - count :] = np.stack(session.actions)
                mask[row, size - count :] = True
        return {"history_states": states, "history_actions": actions, "history_mask": mask}

    @torch.no_grad()
    def _words(self, observations: Sequence[Observation]) -> dict[str, Any]:
        """What the model is to hear, if it does; encoded once an instruction where images make no difference to it.

        Once an instruction and device, to be exact: the model may be moved.
        """
        if not self.model.config.language:
            return {}
        texts = [observation["instruction"] for observation in observations]
        backbone, device = self.model.backbone, self.model.device
        assert backbone is not None
        if backbone.language_reads_vision:
            words = self.processor(embodiment=self.embodiment.name, text=texts).to(device)
            return {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
        keys = [(text, device) for text in texts]
        if len(self._language) > MOST_INSTRUCTIONS:
            self._language.clear()
        for key in set(keys) - set(self._language):
            words = self.processor(embodiment=self.embodiment.name, text=[key[0]]).to(device)
            self._language[key] = backbone.encode_language(None, words["input_ids"], words["attention_mask"])
        heard = [self._language[key] for key in keys]
        hidden_states, mask = (torch.cat([getattr(own, key) for own in heard]) for key in ("hidden_states", "mask"))
        return {"language_features": LanguageFeatures(hidden_states, mask, None)}


class RandomPolicy:
    """Uniform actions within the range seen in the embodiment's data: the floor that a policy has to leave.

    Where actions are learned relative to the state, a step within the range seen, from the observation's state.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        if embodiment.action_statistics is None:
            raise ValueError(f"embodiment {embodiment.name!r} has no action statistics to draw random actions from")
        self.embodiment = embodiment
        self._low = np.asarray(embodiment.action_statistics.min)
        self._high = np.asarray(embodiment.action_statistics.max)

    def new_session(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def act(self, sessions: Sequence[np.random.Generator], observations: Sequence[Observation]) -> NDArray[np.float32]:
        learned = np.stack([session.uniform(self._low, self._high) for session in sessions])
        needs_state = self.embodiment.needs_reference
        states = np.stack([observation["state"] for observation in observations]) if needs_state else None
        return self.embodiment.recorded_actions(learned[:, None], states)[:, 0].astype(np.float32)


def _drop_plans(session: PolicySession) -> None:
    session.queue.clear()
    session.chunks.clear()


def _require_averageable(body: Embodiment, ensemble: float, execute_steps: int | None) -> None:
    if execute_steps is not None:
        raise ValueError(f"execute_steps={execute_steps} with ensemble={ensemble}: it predicts at every step")
    if body.rotations or "relative" in body.action_kinds:
        raise ValueError(
            f"ensemble={ensemble}: {body.name!r} has rotations, or actions that count from each chunk's own start, and "
            "their numbers cannot be averaged: leave it out"
        )


__all__ = ["Observation", "Policy", "PolicySession", "PriorVLAPolicy", "RandomPolicy"]
