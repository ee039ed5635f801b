"""ALOHA, two six-joint arms at a table, as a robot would meet it: pictures, its own joints, an instruction.

Scenes, starts, rewards and gripper units are gym-aloha's; where the objects lie stays inside, for the scripted expert
and the success check. Needs the extra `aloha`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from ...configuration.embodiment import Embodiment
from ...configuration.embodiment_registry import load_embodiment
from .live_cameras import LiveCameras
from .offscreen_rendering import OffscreenRenderer, prepare_offscreen_rendering

prepare_offscreen_rendering()
try:
    import gymnasium
    from dm_control.mujoco import Physics
    from gym_aloha.constants import ASSETS_DIR, DT, START_ARM_POSE
    from gym_aloha.tasks.sim import InsertionTask, TransferCubeTask
    from gym_aloha.utils import sample_box_pose, sample_insertion_pose

    from .aloha_expert import AlohaExpert
except ImportError as error:
    raise ImportError(f"ALOHA is not usable here ({error}): pip install 'priorvla[aloha]'") from error

CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar", "left_wrist", "right_wrist")
GRIPPERS = [6, 13]
SOLVED = 4  # gym-aloha's highest reward


def aloha_embodiment(cameras: Sequence[str] = ("top",)) -> Embodiment:
    """Two ViperX arms, left then right: six joint angles (rad) and a gripper (0 closed, 1 open) each.

    State and action have the same 14 dims; an action is where the joints are to go.
    """
    return replace(load_embodiment("aloha"), cameras=list(cameras))


class AlohaEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One task of gym-aloha, simulated in MuJoCo.

    Observations are `{"state": (14,) float32, "images": Mapping camera -> (image_size, image_size, 3) uint8}`. Pictures
    are drawn on first access and can be drawn until the next `step` or `reset`. The same seed gives the same episode,
    whatever was run before and whether or not pictures were drawn.

    Args:
        task: `transfer_cube` (success: the left hand alone holds the cube above the table, which is stricter than
            gym-aloha, whose highest reward counts its first touch) or `insertion` (success: the peg touches the pin
            inside the socket, as in gym-aloha).
        image_size: side of a picture in pixels.
        cameras: some of `CAMERAS`.
        max_episode_steps: `truncated` is true from this step on (50 steps are a second).
        render: without it `images` is empty and no OpenGL is touched.

    Raises:
        ValueError: on an unknown task or camera, no camera, or a size or length below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    render_mode = "rgb_array"
    success_required = True
    steps_after_success = 8
    noise_scale = np.where(np.isin(np.arange(14), GRIPPERS), 0.2, 0.03).astype(np.float32)  # openings, rad

    def __init__(
        self,
        task: str = "transfer_cube",
        *,
        image_size: int = 112,
        cameras: Sequence[str] = ("top",),
        max_episode_steps: int = 400,
        render: bool = True,
    ) -> None:
        instructions = yaml.safe_load(Path(__file__).with_name("aloha_tasks.yaml").read_text(encoding="utf-8"))
        if task not in instructions:
            raise ValueError(f"ALOHA has no task {task!r}, use one of: {', '.join(instructions)}")
        for camera in cameras:
            if camera not in CAMERAS:
                raise ValueError(f"ALOHA has no camera {camera!r}, use some of: {', '.join(CAMERAS)}")
        if not cameras:
            raise ValueError(f"ALOHA needs a camera, use some of: {', '.join(CAMERAS)}")
        if image_size < 1 or max_episode_steps < 1:
            raise ValueError(f"image_size {image_size} and max_episode_steps {max_episode_steps} must be at least 1")
        self.task = task
        self.instruction: str = instructions[task]
        self.embodiment = aloha_embodiment(cameras)
        self.max_episode_steps = max_episode_steps
        self.image_size = image_size
        self._rules = TransferCubeTask() if task == "transfer_cube" else InsertionTask()
        self._physics = Physics.from_xml_path(str(ASSETS_DIR / f"bimanual_viperx_{task}.xml"))
        self._substeps = round(DT / self._physics.timestep())
        self._renderer: OffscreenRenderer | None = None
        self._cameras = LiveCameras(cameras if render else [], self._draw)
        self._expert = AlohaExpert(self._physics, task)
        self._steps = -1  # before the first reset
        low, high = self._physics.model.actuator_ctrlrange.T
        arms = [*range(6), 0, *range(8, 14), 0]  # a gripper has two actuators, one a finger
        self.action_space = gymnasium.spaces.Box(
            np.where(np.isin(np.arange(14), GRIPPERS), 0.0, low[arms]).astype(np.float32),
            np.where(np.isin(np.arange(14), GRIPPERS), 1.0, high[arms]).astype(np.float32),
        )
        pictures: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for name in self._cameras.names
        }
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (14,), np.float32),
                "images": gymnasium.spaces.Dict(pictures),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; `seed` places the objects. Returns `(observation, {"success": False})`."""
        super().reset(seed=seed)
        physics = self._physics
        placed = int(self.np_random.integers(2**31))
        objects = (
            sample_box_pose(placed) if self.task == "transfer_cube" else np.concatenate(sample_insertion_pose(placed))
        )
        with physics.reset_context():
            physics.data.qpos[:] = np.concatenate([START_ARM_POSE, objects])
            physics.data.ctrl[:] = START_ARM_POSE
        self._expert.begin(self._rules.get_qpos(physics), self.np_random)
        self._steps = 0
        return self._observation(), {"success": False}

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Drives the joints towards `action` (14,), clipped to their limits, for 1/50 s.

        Returns the usual five: the reward is gym-aloha's, 0 to 4; `terminated` is never true; `info["success"]` says
        whether the task is solved right now. Raises ValueError on another shape or a value that is not finite,
        RuntimeError before the first `reset`.
        """
        values = np.asarray(action, dtype=np.float32)
        if values.shape != (14,) or not np.isfinite(values).all():
            raise ValueError(
                f"ALOHA takes 14 finite action values (see embodiment.action_names), got {values.tolist()}"
            )
        if self._steps < 0:
            raise RuntimeError("call reset() before step()")
        allowed = np.clip(values, self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        self._rules.before_step(allowed.astype(np.float64), self._physics)
        self._physics.step(self._substeps)
        self._steps += 1
        reward = float(self._rules.get_reward(self._physics))
        solved = reward == SOLVED and (self.task != "transfer_cube" or not self._right_hand_touches_the_cube())
        return self._observation(), reward, False, self._steps >= self.max_episode_steps, {"success": solved}

    def expert_action(self) -> NDArray[np.float32]:
        """What our scripted expert, which saw where the objects lay, does now: (14,), without noise."""
        if self._steps < 0:
            raise RuntimeError("call reset() before expert_action()")
        return self._expert.action(self._steps).astype(np.float32)

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The first camera's picture of this moment, (image_size, image_size, 3); works with `render=False` too."""
        return self._cameras.picture(self.embodiment.cameras[0])

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._physics.free()

    def _observation(self) -> dict[str, Any]:
        state = self._rules.get_qpos(self._physics).astype(np.float32)
        return {"state": state, "images": self._cameras.observe()}

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self._physics.model.ptr, self.image_size)
        return self._renderer.render(self._physics.data.ptr, camera)

    def _right_hand_touches_the_cube(self) -> bool:
        names = self._physics.model.id2name
        for contact in self._physics.data.contact:
            pair = {names(contact.geom1, "geom"), names(contact.geom2, "geom")}
            if "red_box" in pair and any(name.startswith("vx300s_right/") for name in pair):
                return True
        return False


__all__ = ["CAMERAS", "AlohaEnv", "aloha_embodiment"]
