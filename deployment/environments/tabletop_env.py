"""A tabletop of our own where only the instruction says what to do: pictures, the arm's own hand, a sentence.

Where things lie stays inside, for the scripted expert and the success check. Needs the extra `tabletop`.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from ...configuration.embodiment import Embodiment
from ...configuration.embodiment_registry import load_embodiment
from .live_cameras import LiveCameras
from .offscreen_rendering import OffscreenRenderer
from .tabletop_expert import expert_action
from .tabletop_layouts import Episode, all_requests, draw_episode, implied_request, possible_requests
from .tabletop_model import CAMERA, TIMESTEP, build_model
from .tabletop_scene import HIGHEST, LOWEST, STEPS, TabletopScene

import gymnasium  # isort: skip  # after the scene, whose error says what to install

CONTROL_RATE = 1 / (TIMESTEP * STEPS)  # Hz


def tabletop_embodiment() -> Embodiment:
    """Meta-World's Sawyer with a vacuum cup instead of its claws.

    Actions say where the hand is to go (m, absolute) and whether the vacuum is on (`gripper` above 0). 20 times a
    second the hand is dragged by 40 % of what is missing, at most 6 cm along an axis. The state is the hand's place (m)
    and the vacuum: 0 off, 0.5 on, 1 where it holds something.
    """
    return replace(load_embodiment("tabletop_sawyer"), cameras=[CAMERA])


class TabletopEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """Episodes of one suite and kind of instruction; see `tabletop_layouts` for what the suites are.

    What is done first counts: whoever does something else than what was asked for, or what was asked for later, has
    failed, and the episode ends.

    Observations are `{"state": (4,) float32, "images": Mapping camera -> (image_size, image_size, 3) uint8}`. The seed
    of `reset` decides the scene, its light, where exactly the camera stands, and what is asked for: `instruction` is
    that of the present episode. Pictures are drawn on first access and can be drawn until the next `step` or `reset`.
    The same seed gives the same episode, whatever was run before and whether or not pictures were drawn.

    Args:
        task: suite and kind, a name of `list_tasks("tabletop")`, for example `many-instructions/put`.
        image_size: side of a picture in pixels.
        max_episode_steps: `truncated` is true from this step on (20 steps are a second). Default: 60, and 120 where two
            things are asked for.
        words: without them `instruction` is empty, and what is asked for stays what it was: whatever is done then is
            done without listening.
        render: without it `images` is empty and no OpenGL is touched.

    Raises:
        ValueError: on an unknown task, or a size or length below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_RATE)}
    render_mode = "rgb_array"
    success_required = True
    steps_after_success = 4
    noise_scale = np.array([0.15, 0.15, 0.05, 0.5], np.float32)  # metres, and of the vacuum's switch

    def __init__(
        self,
        task: str,
        *,
        image_size: int = 112,
        max_episode_steps: int | None = None,
        words: bool = True,
        render: bool = True,
    ) -> None:
        tasks = yaml.safe_load(Path(__file__).with_name("tabletop_tasks.yaml").read_text(encoding="utf-8"))
        if task not in tasks:
            raise ValueError(f"the tabletop has no task {task!r}, use one of: {', '.join(tasks)}")
        self.task = task
        self.suite, _, self.kind = task.partition("/")
        if max_episode_steps is None:
            max_episode_steps = 120 if self.suite == "chained" else 60
        if image_size < 1 or max_episode_steps < 1:
            raise ValueError(f"image_size {image_size} and max_episode_steps {max_episode_steps} must be at least 1")
        self.instruction: str = tasks[task] if words else ""
        self._words = words
        self.embodiment = tabletop_embodiment()
        self.max_episode_steps = max_episode_steps
        self.image_size = image_size
        self.episode: Episode | None = None
        self._scene = TabletopScene()
        self._renderer: OffscreenRenderer | None = None
        self._cameras = LiveCameras([CAMERA] if render else [], self._draw)
        self._steps = 0
        pictures: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for name in self._cameras.names
        }
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
                "images": gymnasium.spaces.Dict(pictures),
            }
        )
        self.action_space = gymnasium.spaces.Box(
            np.append(LOWEST, -1.0).astype(np.float32), np.append(HIGHEST, 1.0).astype(np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode. Returns `(observation, info)`.

        Besides `success`, infos say how many instructions this scene might have been given (`instructions`) and what
        was done (`outcome`): what was `asked`; what the layout would have `implied` as an only instruction
        (`implied_request`); `another` thing; or `nothing` that can be asked for (so far).
        """
        super().reset(seed=seed)
        self.episode = draw_episode(self.suite, self.kind, self.np_random)
        self.instruction = self.episode.instruction if self._words else ""
        self._scene.arrange(self.episode.layout)
        self._steps = 0
        return self._observation(), self._info()

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes `action` (4,), brought into the action space, for 1/20 s.

        Returns the usual five: the reward is 1 while what was asked for is done, and 0 before; `terminated` is true
        where something else was done. Raises ValueError on another shape or a value that is not finite, RuntimeError
        before the first `reset`.
        """
        values = np.asarray(action, dtype=np.float32)
        if values.shape != (4,) or not np.isfinite(values).all():
            raise ValueError(f"the tabletop takes 4 finite action values (x, y, z, gripper), got {values.tolist()}")
        if self.episode is None:
            raise RuntimeError("call reset() before step()")
        self._scene.advance(values[:3], bool(values[3] > 0))
        self._steps += 1
        info = self._info()
        other, late = info["outcome"] in ("implied", "another"), self._steps >= self.max_episode_steps
        return self._observation(), float(info["success"]), other, late, info

    def expert_action(self) -> NDArray[np.float32]:
        """What the scripted expert, which sees where everything is, does now: (4,), without noise."""
        if self.episode is None:
            raise RuntimeError("call reset() before expert_action()")
        return expert_action(self._scene, self.episode.requests)

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The picture of this moment, (image_size, image_size, 3) uint8; works with `render=False` too."""
        return self._cameras.picture(CAMERA)

    def close(self) -> None:
        self._renderer = None  # closed with the last tabletop that draws with it

    def _observation(self) -> dict[str, Any]:
        scene = self._scene
        vacuum = 0.0 if not scene.vacuum else 0.5 if scene.held is None else 1.0
        return {"state": np.append(scene.hand, vacuum).astype(np.float32), "images": self._cameras.observe()}

    def _info(self) -> dict[str, Any]:
        assert self.episode is not None
        layout, asked = self.episode.layout, self.episode.requests
        done = [request for request in all_requests(layout) if self._scene.fulfilled(request)]
        right = {request.thing for request in asked if request in done}  # in a container by the side's line: both
        wrong = [request for request in done if request not in asked and request.thing not in right]
        wrong += [later for first, later in pairwise(asked) if later.thing in right and first.thing not in right]
        outcome = "nothing"
        if len(right) == len(asked):
            outcome = "asked"
        elif wrong:
            outcome = "implied" if implied_request(layout) in wrong else "another"
        return {
            "success": outcome == "asked",
            "outcome": outcome,
            "instructions": len(possible_requests(self.suite, layout)),
        }

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = _renderer_of(self.image_size)
        return self._renderer.render(self._scene.data, camera, model=self._scene.model)


_renderers: WeakValueDictionary[tuple[int, int], OffscreenRenderer] = WeakValueDictionary()


def _renderer_of(size: int) -> OffscreenRenderer:
    """One for all tabletops of a thread and a size, because making one takes longer than most of an episode.

    Their models are copies of each other, and a context of OpenGL belongs to one thread.
    """
    key = (threading.get_ident(), size)
    renderer = _renderers.get(key)
    if renderer is None:
        renderer = _renderers[key] = OffscreenRenderer(build_model(), size)
    return renderer


__all__ = ["CONTROL_RATE", "TabletopEnv", "tabletop_embodiment"]
