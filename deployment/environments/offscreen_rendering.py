"""Fast off-screen pictures of MuJoCo scenes, on machines without a display.

The recipe: no shadows, no reflections, no multisampling, and a frame buffer of exactly the picture's size. It is about
ten times faster on a CPU than MuJoCo's defaults and changes the pixels, so whoever uses it must use it for training
*and* evaluation. `prepare_offscreen_rendering` must run before `mujoco` is imported for the first time in a process.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYSTEM_LIBRARIES = "libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
INSTALL_HINT = f"apt-get install -y --no-install-recommends {SYSTEM_LIBRARIES}"


def prepare_offscreen_rendering() -> None:
    """Selects EGL for MuJoCo on a Linux machine without a display, unless `MUJOCO_GL` says otherwise.

    Software OpenGL gets one thread, unless `LP_NUM_THREADS` says otherwise: small pictures are bound by their geometry,
    and processes that draw side by side would only fight for the cores.
    Where the EGL library is missing, MuJoCo's OpenGL is switched off instead: simulating without pictures still works,
    and asking for a picture says what to install. Raises RuntimeError, saying the same, where `MUJOCO_GL=egl` was asked
    for without the library: importing mujoco would fail.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if sys.platform != "linux":
        return
    if os.environ.get("MUJOCO_GL") == "egl" and not _has_egl():
        raise RuntimeError(f"MUJOCO_GL=egl, but the EGL library is not installed: {INSTALL_HINT}")
    if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl" if _has_egl() else "disable"


def _has_egl() -> bool:
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return True


class OffscreenRenderer:
    """Square RGB pictures of one MuJoCo model.

    Args:
        model: a `mujoco.MjModel`; its off-screen buffer size and multisampling are changed.
        size: side of a picture in pixels.
        hidden_groups: geometry groups that are not drawn besides those that MuJoCo leaves out.

    Raises:
        RuntimeError: where no OpenGL context can be made, with the packages to install.
    """

    def __init__(self, model: Any, size: int, hidden_groups: Sequence[int] = ()) -> None:
        import mujoco

        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = 0
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # every back end has exceptions of its own
            raise RuntimeError(
                f"MuJoCo cannot draw here (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}: {error}). If OpenGL's system "
                f"libraries are missing: {INSTALL_HINT}. Then start again with MUJOCO_GL=egl in the environment, which "
                "must be set before anything imports mujoco"
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        self._shown = mujoco.MjvOption()
        self._shown.geomgroup[list(hidden_groups)] = 0
        _open_renderers.add(self)
        atexit.unregister(_close_open_renderers)  # once, and after MuJoCo's own: what is registered last runs first
        atexit.register(_close_open_renderers)

    def render(
        self,
        data: Any,
        camera: str,
        window: tuple[float, float, float] = (0.0, 0.0, 1.0),
        model: Any = None,
    ) -> NDArray[np.uint8]:
        """The scene of `data` (`mujoco.MjData`) as `camera` sees it: (size, size, 3), first row on top.

        Args:
            window: left, top and side of the square to draw, in parts of the camera's whole view; it fills the picture.
            model: whose data these are; default: the renderer's. Another must have the same meshes and textures, which
                the context holds; of its own may be where things are, how they look, lights and cameras.
        """
        import mujoco

        scene = self._renderer.scene
        model = self._renderer.model if model is None else model
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        mujoco.mjv_updateScene(model, data, self._shown, None, view, mujoco.mjtCatBit.mjCAT_ALL, scene)
        left, top, side = window
        for view in scene.camera:  # two, which MuJoCo averages
            height = view.frustum_top - view.frustum_bottom
            view.frustum_center += (left + side / 2 - 0.5) * height
            view.frustum_top -= top * height
            view.frustum_bottom = view.frustum_top - side * height
        frame: NDArray[np.uint8] = self._renderer.render()
        return frame

    def close(self) -> None:
        """Frees the OpenGL context."""
        _open_renderers.discard(self)
        self._renderer.close()


_open_renderers: weakref.WeakSet[OffscreenRenderer] = weakref.WeakSet()


def _close_open_renderers() -> None:
    """Contexts that outlive MuJoCo's own clean-up at exit complain on the terminal."""
    for renderer in list(_open_renderers):
        renderer.close()


__all__ = ["INSTALL_HINT", "SYSTEM_LIBRARIES", "OffscreenRenderer", "prepare_offscreen_rendering"]
