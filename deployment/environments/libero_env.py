"""LIBERO's language tasks as a robot would meet them: two cameras, the robot's own joints or hand, an instruction.

Where things are stays inside, for our scripted expert and the success check. Every task can be played by four arms and
commanded in end-effector or in joint space. Needs the extra `libero`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from .libero_expert import PickAndPlace
from .libero_package import gymnasium
from .libero_robots import (
    ACTION_SPACES,
    ARMS,
    CAMERAS,
    CONTROL_RATE,
    POSITION_REACH,
    ROTATION_REACH,
    libero_embodiment,
)
from .libero_scene import LiberoScene, recorded_starts
from .live_cameras import LiveCameras
from .mesh_simplification import simplify_meshes
from .offscreen_rendering import OffscreenRenderer
from .registry import require_experts
from .trial_starts import trial_of

STARTS = ("drawn", "recorded")
COLLISION_GROUP = 0  # robosuite's shapes for contacts, which nobody should see
MESH_CELL = 0.45  # m, by image_size: half a pixel of `agentview`, several of `wrist` near a thing; 3 times as fast


@cache
def _instructions() -> dict[str, str]:
    content = Path(__file__).with_name("libero_tasks.yaml").read_text(encoding="utf-8")
    instructions: dict[str, str] = yaml.safe_load(content)
    return instructions


class LiberoEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One task of LIBERO.

    Observations are `{"state": (S,) float32, "images": Mapping camera -> (image_size, image_size, 3) uint8}` of the
    cameras `agentview` and `wrist`, upright. Pictures are drawn on first access and can be drawn until the next `step`
    or `reset`. For units of states and actions see `libero_embodiment`. The same seed gives the same episode, whatever
    was run before and whether or not pictures were drawn.

    Beside LIBERO's four suites there are LIBERO-PRO's splits of each: `_lan` (other words), `_object` (other things),
    `_swap` (other places) and `_task` (another goal).

    Args:
        task: a name of `list_tasks("libero")`, for example `libero_object/pick_up_the_milk_and_place_it_in_the_basket`.
        robot: `panda`, `iiwa`, `ur5e` or `kinova3`.
        action_space: `eef` or `joint`.
        starts: `drawn` from LIBERO's own distributions by the seed, or `recorded`: the benchmark's 50 starts of the
            task. `reset(seed=i)` is number i of them, and so is trial i of an evaluation, whatever its seed
            (`trial_of`); there are no others. They were recorded with the Panda; another arm meets the same things at
            the same places, and starts as it always does. For evaluations, not for training.
        image_size: side of a picture in pixels.
        max_episode_steps: `truncated` is true from this step on (20 steps are a second).
        render: without it `images` is empty and no OpenGL is touched.

    Raises:
        ValueError: on an unknown task, robot, action space or kind of starts, or a size or length below 1.
        FileNotFoundError: the installed benchmark has no file of that task, or no recorded starts.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_RATE)}
    render_mode = "rgb_array"
    success_required = True
    steps_after_success = 15

    def __init__(
        self,
        task: str,
        *,
        robot: str = "panda",
        action_space: str = "eef",
        starts: str = "drawn",
        image_size: int = 112,
        max_episode_steps: int = 300,
        render: bool = True,
    ) -> None:
        if task not in _instructions():
            raise ValueError(f"LIBERO has no task {task!r}, use one of: {', '.join(_instructions())}")
        if robot not in ARMS:
            raise ValueError(f"LIBERO's scenes have no robot {robot!r}, use one of: {', '.join(ARMS)}")
        if action_space not in ACTION_SPACES:
            raise ValueError(f"there is no action space {action_space!r}, use one of: {', '.join(ACTION_SPACES)}")
        if starts not in STARTS:
            raise ValueError(f"there are no starts {starts!r}, use one of: {', '.join(STARTS)}")
        if image_size < 1 or max_episode_steps < 1:
            raise ValueError(f"image_size {image_size} and max_episode_steps {max_episode_steps} must be at least 1")
        self.task = task
        self.instruction = _instructions()[task]
        self.embodiment = libero_embodiment(robot, action_space)
        self.max_episode_steps = max_episode_steps
        self._image_size = image_size
        self._in_joints = action_space == "joint"
        self._recorded = len(recorded_starts(task)) if starts == "recorded" else 0
        self._scene = LiberoScene(task, robot, action_space)
        self._renderer: OffscreenRenderer | None = None
        self._cameras = LiveCameras(list(CAMERAS) if render else [], self._draw)
        self._rest: NDArray[np.float64] | None = None
        self._expert: PickAndPlace | None = None
        self._steps = 0
        bound = np.full(self.embodiment.action_dim, np.inf if self._in_joints else 1.0, np.float32)
        self.action_space = gymnasium.spaces.Box(-bound, bound)
        pictures: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for name in self._cameras.names
        }
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (self.embodiment.state_dim,), np.float32),
                "images": gymnasium.spaces.Dict(pictures),
            }
        )

    @property
    def noise_scale(self) -> NDArray[np.float32]:
        """What a unit of `collect`'s noise is: 5 cm and 0.1 rad of the hand, 0.1 rad of a joint, nothing of fingers."""
        arm = [0.1] * (self.embodiment.action_dim - 1) if self._in_joints else [1.0] * 3 + [0.2] * 3
        return np.array([*arm, 0.0], np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; `seed` places all things. Returns `(observation, {"success": False})`.

        Without a seed the next places are drawn, of the recorded starts one. Raises ValueError where `seed` asks for a
        recorded start that is none.
        """
        if self._recorded and seed is not None:
            seed = trial_of(seed)
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        self._scene.reset(drawn, (drawn % self._recorded if seed is None else seed) if self._recorded else None)
        self._rest = self._scene.joints
        self._expert = None
        self._steps = 0
        return self._observation(), {"success": False}

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes `action` for 1/20 s: (7,) clipped to [-1, 1], or joint targets (rad) and the gripper.

        Returns the usual five: `terminated` is never true (success does not end an episode), `info["success"]` says
        whether the task is solved right now. Raises ValueError on another shape or a value that is not finite,
        RuntimeError before the first `reset`.
        """
        values = np.asarray(action, dtype=np.float64)
        names = self.embodiment.action_names
        if values.shape != (len(names),) or not np.isfinite(values).all():
            raise ValueError(
                f"{self.embodiment.name} takes {len(names)} finite action values ({', '.join(names)}), "
                f"got {values.tolist()}"
            )
        if self._rest is None:
            raise RuntimeError("call reset() before step()")
        success = self._scene.step(values if self._in_joints else np.clip(values, -1.0, 1.0))
        if self._expert is not None:
            self._expert.advance(success)
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps
        return self._observation(), float(success), False, truncated, {"success": success}

    def expert_action(self) -> NDArray[np.float32]:
        """What our scripted expert, which sees where things are, does now, without noise.

        It must be asked from an episode's first step on. Raises NotImplementedError on a task that it cannot do, those
        that `require_experts` refuses.
        """
        if self._rest is None:
            raise RuntimeError("call reset() before expert_action()")
        if self._expert is None:
            self._expert = self._make_expert()
        action = self._expert.action()
        if self._in_joints:
            displacement, rotation = action[:3] * POSITION_REACH, action[3:6] * ROTATION_REACH
            action = np.append(self._scene.joint_targets(displacement, rotation, self._rest), action[6])
        return action.astype(np.float32)

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """`agentview` at this moment, (image_size, image_size, 3) uint8; works with `render=False` too."""
        return self._cameras.picture("agentview")

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._scene.close()

    def _make_expert(self) -> PickAndPlace:
        try:
            require_experts("libero", [self.task])
        except ValueError as error:
            raise NotImplementedError(str(error)) from None
        (relation, thing, target), *_ = self._scene.goals
        return PickAndPlace(self._scene, relation, thing, target)

    def _observation(self) -> dict[str, Any]:
        scene = self._scene
        if self._in_joints:
            left, right = scene.fingers
            state = np.append(scene.joints, left - right)
        else:
            state = np.concatenate([scene.hand_position, _axis_angle(scene.hand_quaternion), scene.fingers])
        return {"state": state.astype(np.float32), "images": self._cameras.observe()}

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        if self._renderer is None:
            simplify_meshes(self._scene.model, MESH_CELL / self._image_size)
            self._renderer = OffscreenRenderer(self._scene.model, self._image_size, [COLLISION_GROUP])
        return self._renderer.render(self._scene.data, CAMERAS[camera])


def _axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation vector of an xyzw quaternion, of 0 to 2 pi: unbroken where a hand points down, which is near pi."""
    sine = np.linalg.norm(quaternion[:3])
    angle = 2 * np.arctan2(sine, quaternion[3])
    return np.asarray(quaternion[:3] * (angle / sine if sine > 0 else 2.0))


__all__ = ["LiberoEnv"]
