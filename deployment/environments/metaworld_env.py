"""Meta-World's 50 manipulation tasks as a robot would meet them: pictures, its own hand, an instruction.

Meta-World's own observation holds object and goal positions. They stay inside, for the scripted expert and the success
check; a policy gets the camera pictures and four numbers of proprioception. (The pictures do show the small coloured
balls with which Meta-World marks some goals; for reach, push and the like nothing else says where the goal is.)
Needs the extra `metaworld`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from ...configuration.embodiment import Embodiment, NormalizationMode
from .live_cameras import LiveCameras
from .offscreen_rendering import OffscreenRenderer, prepare_offscreen_rendering

prepare_offscreen_rendering()
try:
    import gymnasium
    import mujoco
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP
except ImportError as error:
    raise ImportError(f"Meta-World is not usable here ({error}): pip install 'priorvla[metaworld]'") from error

_EXPERTS: dict[str, Any] = ENV_POLICY_MAP  # its values are typed as the abstract class
CONTROL_RATE = 80.0  # Hz: 5 physics steps of 2.5 ms an action


@dataclass(frozen=True)
class CameraView:
    """How a Meta-World camera becomes an upright picture.

    Args:
        rotated: Meta-World mounts this camera upside down.
        position: where to put the camera (m) instead of where Meta-World has it.
        window: left, top and side of the square kept, in parts of the full upright view.
        hidden_bodies: bodies that are outside the window in every pose; leaving them out saves a third of the time.
    """

    rotated: bool = False
    position: tuple[float, float, float] | None = None
    window: tuple[float, float, float] = (0.0, 0.0, 1.0)
    hidden_bodies: tuple[str, ...] = ()


# corner2 is moved closer and cut to where hands and objects are: at 112 pixels a drawer handle is then several pixels
# wide (our choice). The others are Meta-World's own views, upright.
CAMERA_VIEWS = {
    "corner2": CameraView(
        rotated=True,
        position=(0.75, 0.075, 0.7),
        window=(0.30, 0.08, 0.68),
        hidden_bodies=("pedestal", "right_arm_base_link", "right_l0", "right_l1", "head"),
    ),
    "corner": CameraView(rotated=True),
    "corner3": CameraView(rotated=True),
    "corner4": CameraView(rotated=True),
    "topview": CameraView(),
    "behindGripper": CameraView(),
    "gripperPOV": CameraView(),
}


@cache
def _instructions() -> dict[str, str]:
    content = Path(__file__).with_name("metaworld_tasks.yaml").read_text(encoding="utf-8")
    instructions: dict[str, str] = yaml.safe_load(content)
    return instructions


def metaworld_embodiment(camera: str = "corner2") -> Embodiment:
    """Meta-World's Sawyer arm, whose hand is dragged along x, y, z and whose gripper opens and closes.

    Actions are in [-1, 1] and need no normalisation: `dx, dy, dz` displace the point that the hand is dragged to, by
    1 cm a unit (kind `delta`), `gripper` is the closing effort, +1 closes. The state is the hand's position (m) and the
    gripper's opening, 0 to 1.
    """
    return Embodiment(
        name="metaworld_sawyer",
        action_names=["dx", "dy", "dz", "gripper"],
        state_names=["hand_x", "hand_y", "hand_z", "gripper_opening"],
        control_rate=CONTROL_RATE,
        action_kinds=["delta", "delta", "delta", "absolute"],
        gripper_dims=[3],
        cameras=[camera],
        action_normalization=NormalizationMode.IDENTITY,
        state_normalization=NormalizationMode.MEAN_STD,
    )


class MetaWorldEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One Meta-World v3 task.

    Observations are `{"state": (4,) float32, "images": Mapping camera -> (image_size, image_size, 3) uint8}`. Pictures
    are drawn on first access and can be drawn until the next `step` or `reset`. The simulation is built once and used
    for every episode; the same seed gives the same episode, whatever was run before and whether or not pictures were
    drawn.

    Args:
        task: a name of `list_tasks("metaworld")`, for example `drawer-open`.
        image_size: side of a picture in pixels.
        camera: one of `CAMERA_VIEWS`.
        max_episode_steps: `truncated` is true from this step on (80 steps are a second).
        render: without it `images` is empty and no OpenGL is touched.

    Raises:
        ValueError: on an unknown task or camera, or a size or length below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_RATE)}
    render_mode = "rgb_array"
    success_required = True
    steps_after_success = 8
    noise_scale = 1.0

    def __init__(
        self,
        task: str,
        *,
        image_size: int = 112,
        camera: str = "corner2",
        max_episode_steps: int = 200,
        render: bool = True,
    ) -> None:
        if task not in _instructions():
            raise ValueError(f"Meta-World has no task {task!r}, use one of: {', '.join(_instructions())}")
        if camera not in CAMERA_VIEWS:
            raise ValueError(f"Meta-World has no camera {camera!r}, use one of: {', '.join(CAMERA_VIEWS)}")
        if image_size < 1 or max_episode_steps < 1:
            raise ValueError(f"image_size {image_size} and max_episode_steps {max_episode_steps} must be at least 1")
        self.task = task
        self.instruction = _instructions()[task]
        self.embodiment = metaworld_embodiment(camera)
        self.max_episode_steps = max_episode_steps
        self.image_size = image_size
        self.camera = camera
        self._renderer: OffscreenRenderer | None = None
        self._cameras = LiveCameras([camera] if render else [], self._draw)
        self._simulation = _build_simulation(task, max_episode_steps)
        view = CAMERA_VIEWS[camera]
        if view.position is not None:
            self._simulation.model.camera(camera).pos[:] = view.position
        _hide_bodies(self._simulation.model, view.hidden_bodies)
        self._initial_model = _copy_poses(self._simulation.model)
        self._steps = 0
        self._privileged: NDArray[np.float64] | None = None
        pictures: dict[str, gymnasium.Space[Any]] = {
            name: gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for name in self._cameras.names
        }
        self.observation_space = gymnasium.spaces.Dict(
            {
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
                "images": gymnasium.spaces.Dict(pictures),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; `seed` places objects and goals. Returns `(observation, {"success": False})`."""
        super().reset(seed=seed)
        simulation = self._simulation
        for name, values in self._initial_model.items():
            getattr(simulation.model, name)[:] = values
        mujoco.mj_resetData(simulation.model, simulation.data)
        simulation.seed(int(self.np_random.integers(2**31)))
        simulation.reset()
        mujoco.mj_forward(simulation.model, simulation.data)  # Meta-World moves bodies after its last forward pass
        simulation._prev_obs = simulation._get_curr_obs_combined_no_goal()
        self._privileged = simulation._get_obs()
        self._expert = _EXPERTS[f"{self.task}-v3"]()
        self._steps = 0
        return self._observation(), {"success": False}

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes `action` (4,), clipped to [-1, 1], for 1/80 s.

        Returns the usual five: `terminated` is never true (success does not end an episode), `info["success"]` says
        whether the task is solved right now. Raises ValueError on another shape or a value that is not finite,
        RuntimeError before the first `reset`.
        """
        values = np.asarray(action, dtype=np.float32)
        if values.shape != (4,) or not np.isfinite(values).all():
            raise ValueError(f"Meta-World takes 4 finite action values (dx, dy, dz, gripper), got {values.tolist()}")
        if self._privileged is None:
            raise RuntimeError("call reset() before step()")
        self._privileged, reward, _, _, info = self._simulation.step(np.clip(values, -1.0, 1.0))
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps
        return self._observation(), float(reward), False, truncated, {"success": bool(info["success"])}

    def expert_action(self) -> NDArray[np.float32]:
        """What Meta-World's scripted expert, which sees objects and goal, does now: (4,) in [-1, 1], without noise."""
        if self._privileged is None:
            raise RuntimeError("call reset() before expert_action()")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts warn that they overshoot [-1, 1]; we clip
            action = self._expert.get_action(self._privileged)
        return np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The picture of this moment, (image_size, image_size, 3) uint8; works with `render=False` too."""
        return self._cameras.picture(self.camera)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._simulation.close()

    def _observation(self) -> dict[str, Any]:
        assert self._privileged is not None
        return {"state": self._privileged[:4].astype(np.float32), "images": self._cameras.observe()}

    def _draw(self, camera: str) -> NDArray[np.uint8]:
        view = CAMERA_VIEWS[camera]
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self._simulation.model, self.image_size)
        for site in self._simulation._target_site_config:  # goal markers, which a forward pass may have put back
            self._simulation._set_pos_site(*site)
        if not view.rotated:
            return self._renderer.render(self._simulation.data, camera, view.window)
        left, top, side = view.window
        picture = self._renderer.render(self._simulation.data, camera, (1 - left - side, 1 - top - side, side))
        return np.ascontiguousarray(picture[::-1, ::-1])


def _build_simulation(task: str, max_episode_steps: int) -> Any:
    """Meta-World's own environment, with starts from its own seeded generator and the goal shown to the expert."""
    simulation = ENV_CLS_MAP[f"{task}-v3"]()
    simulation._freeze_rand_vec = False
    simulation.seeded_rand_vec = True
    simulation._set_task_called = True
    simulation._partially_observable = False
    simulation.__dict__.pop("sawyer_observation_space", None)  # cached for the partially observable case
    simulation.max_path_length = max_episode_steps + 1  # our truncation comes first; Meta-World raises at its own
    return simulation


def _hide_bodies(model: Any, names: tuple[str, ...]) -> None:
    hidden = [model.body(name).id for name in names]
    model.geom_group[np.isin(model.geom_bodyid, hidden)] = 5  # a group that MuJoCo does not draw


def _copy_poses(model: Any) -> dict[str, NDArray[np.float64]]:
    """What Meta-World's resets move in the model itself and would otherwise carry from one episode into the next."""
    names = ("body_pos", "body_quat", "geom_pos", "geom_quat", "site_pos", "site_quat")
    return {name: getattr(model, name).copy() for name in names}


__all__ = ["CAMERA_VIEWS", "CONTROL_RATE", "CameraView", "MetaWorldEnv", "metaworld_embodiment"]
