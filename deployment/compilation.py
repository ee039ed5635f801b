"""torch.compile of what a policy runs most: the expert, once a denoising step. This module imports no deep learning."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling_priorvla.modeling_priorvla import PriorVLAModel


def require_compiler(device: str) -> None:
    """Raises RuntimeError when what torch.compile needs for `device` (`cpu`, `cuda`, ...) is not installed."""
    if device.startswith("cuda"):
        if find_spec("triton") is None:
            raise RuntimeError(
                "compile needs the package triton, which CUDA builds of torch bring: install it, or leave it out"
            )
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise RuntimeError(
            f"compile needs a C++ compiler, and there is no {compiler}: install one (apt-get install g++), name it in "
            "CXX, or leave compile out"
        )


def compile_expert(model: PriorVLAModel) -> None:
    """From now on the expert's layers run compiled, wherever the model is used; the first calls compile, for minutes.

    The backbone stays as it was loaded (it runs once a chunk, and its own branches break it into many graphs), and so
    do the maps of single bodies. One graph is of one observation, one of any larger batch, and as many of chunks that
    begin with a prefix. Results differ from the uncompiled ones by rounding. A copy of the model is not compiled.

    Raises RuntimeError as `require_compiler`.
    """
    import torch

    require_compiler(model.device.type)
    if "denoise" in vars(model.expert):  # it is already
        return
    model.expert.denoise = torch.compile(model.expert.denoise)  # type: ignore[method-assign]


__all__ = ["compile_expert", "require_compiler"]
