"""PushT, a round finger that pushes a T over a table, as a robot would meet it: pictures, its place, an instruction.

Where the T lies stays inside, for the scripted pushes and the success check. Needs the extra `pusht`; no OpenGL.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from ...configuration.embodiment import Embodiment
from ...configuration.embodiment_registry import load_embodiment
from .live_cameras import LiveCameras
from .pusht_expert import PushTExpert

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    import gymnasium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pygame's own
        from gym_pusht.envs.pusht import PushTEnv as Simulation
except ImportError as error:
    raise ImportError(f"PushT is not usable here ({error}): pip install 'priorvla[pusht]'") from error

TABLE_SIDE = 512.0  # pixels of the simulation, whatever the size of a picture
CAMERA = "top"


def pusht_embodiment() -> Embodiment:
    """A finger on a square table: the action is the place it is drawn to, the state the place where it is (pixels)."""
    return replace(load_embodiment("pusht"), cameras=[CAMERA])


class PushTEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """The one task of PushT: to push the T onto its outline.

    Observations are `{"state": (2,) float32, "images": Mapping camera -> (image_size, image_size, 3) uint8}`, x to the
    right and y down, both in [0, 512]. Pictures are drawn on first access and can be drawn until the next `step` or
    `reset`. The same seed gives the same episode, whatever was run before.

    The scripted pushes bring the T nearer to its outline but seldom cover 95 % of it: `success_required` is false, and
    what is collected from them is motion, good for an action prior, not a set of solutions.

    Args:
        task: `push-t`.
        image_size: side of a picture in pixels.
        max_episode_steps: `truncated` is true from this step on (10 steps are a second).
        render: without it `images` is empty.

    Raises:
        ValueError: on an unknown task, or a size or length below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"
    success_required = False
    steps_after_success = 8
    noise_scale = np.full(2, 100.0, np.float32)  # pixels

    def __init__(
        self, task: str = "push-t", *, image_size: int = 112, max_episode_steps: int = 300, render: bool = True
    ) -> None:
        instructions = yaml.safe_load(Path(__file__).with_name("pusht_tasks.yaml").read_text(encoding="utf-8"))
        if task not in instructions:
            raise ValueError(f"PushT has no task {task!r}, use one of: {', '.join(instructions)}")
        if image_size < 1 or max_episode_steps < 1:
            raise ValueError(f"image_size {image_size} and max_episode_steps {max_episode_steps} must be at least 1")
        self.task = task
        self.instruction: str = instructions[task]
        self.embodiment = pusht_embodiment()
        self.max_episode_steps = max_episode_steps
        self._simulation = Simulation(
            obs_type="state",
            observation_width=image_size,
            observation_height=image_size,
        )
        self._cameras = LiveCameras([CAMERA] if render else [], lambda camera: self._draw())
        self._expert: PushTExpert | None = None
        self._steps = 0
        pictures: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for name in self._cameras.names
        }
        self.action_space = gymnasium.spaces.Box(0.0, TABLE_SIDE, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(0.0, TABLE_SIDE, (2,), np.float32),
                "images": gymnasium.spaces.Dict(pictures),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; `seed` places finger and T. Returns `(observation, {"success": False})`."""
        super().reset(seed=seed)
        self._simulation.reset(seed=int(self.np_random.integers(2**31)))
        self._expert = PushTExpert(self._simulation, self.np_random)
        self._steps = 0
        return self._observation(), {"success": False}

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Draws the finger to `action` (2,), clipped to the table, for 1/10 s.

        Returns the usual five: the reward is the covered part of the outline / 0.95, at most 1; `terminated` is never
        true; `info["success"]` says whether 95 % are covered right now. Raises ValueError on another shape or a value
        that is not finite, RuntimeError before the first `reset`.
        """
        values = np.asarray(action, dtype=np.float32)
        if values.shape != (2,) or not np.isfinite(values).all():
            raise ValueError(f"PushT takes 2 finite action values (x, y in pixels), got {values.tolist()}")
        if self._expert is None:
            raise RuntimeError("call reset() before step()")
        target = np.clip(values, 0.0, TABLE_SIDE).astype(np.float64)
        _, reward, _, _, info = self._simulation.step(target)
        self._expert.advance()
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps
        return self._observation(), float(reward), False, truncated, {"success": bool(info["is_success"])}

    def expert_action(self) -> NDArray[np.float32]:
        """Where our scripted pushes, which see the T, draw the finger now: (2,) pixels, without noise."""
        if self._expert is None:
            raise RuntimeError("call reset() before expert_action()")
        return np.clip(self._expert.action(), 0.0, TABLE_SIDE).astype(np.float32)

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The picture of this moment, (image_size, image_size, 3) uint8; works with `render=False` too."""
        return self._cameras.picture(CAMERA)

    def close(self) -> None:
        self._simulation.close()

    def _observation(self) -> dict[str, Any]:
        state = np.asarray(self._simulation.agent.position, dtype=np.float32)
        return {"state": state, "images": self._cameras.observe()}

    def _draw(self) -> NDArray[np.uint8]:
        picture: NDArray[np.uint8] = self._simulation._render()
        return np.ascontiguousarray(picture)


__all__ = ["PushTEnv", "pusht_embodiment"]
