"""Exponential moving average of the trained weights (diffusers' `EMAModel`), saved as safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

RAW_WEIGHTS_FILE = "raw_weights.safetensors"


class WeightAverage:
    """Averages the parameters of `model` that require a gradient; the others are left alone.

    A checkpoint's `model.safetensors` is written inside `applied()`, so that it holds the average; the raw weights that
    training continues from lie beside it in `raw_weights.safetensors`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.average = EMAModel(self.trained.values(), decay=decay, foreach=True)

    def step(self) -> None:
        """After every optimizer step."""
        self.average.step(self.trained.values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self.average.store(self.trained.values())
        self.average.copy_to(self.trained.values())
        try:
            yield
        finally:
            self.average.restore(self.trained.values())

    def save_raw(self, folder: str | Path) -> None:
        tensors = {name: parameter.detach().contiguous() for name, parameter in self.trained.items()}
        save_file(tensors, Path(folder) / RAW_WEIGHTS_FILE, metadata={"format": "pt"})

    @torch.no_grad()
    def take_over(self) -> None:
        """The model's weights are the average from now on."""
        for shadow, parameter in zip(self.average.shadow_params, self.trained.values(), strict=True):
            shadow.copy_(parameter)

    @torch.no_grad()
    def resume(self, folder: str | Path, steps: int) -> None:
        """After the model was loaded from `folder`: it holds the average after `steps`, and gets the raw weights back.

        Raises FileNotFoundError or ValueError when the checkpoint has no raw weights, or those of another model.
        """
        file = Path(folder) / RAW_WEIGHTS_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: this folder is no training checkpoint that can be resumed with an EMA"
            )
        raw = load_file(file)
        if raw.keys() != self.trained.keys():
            other = sorted(raw.keys() ^ self.trained.keys())[0]
            raise ValueError(
                f"{file}: tensor {other!r} is trained in one of checkpoint and run only: resume with its settings"
            )
        self.take_over()
        for name, parameter in self.trained.items():
            parameter.copy_(raw[name])
        self.average.optimization_step = steps


__all__ = ["WeightAverage"]
