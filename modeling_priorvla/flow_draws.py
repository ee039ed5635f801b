"""What chance decides in a training pass, drawn in one place and handed to the model.

A Trainer draws for the whole batch of a step and gives every process its rows, so that a run does not depend on how
many processes share it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..configuration.configuration_expert import MotionConfig
from .flow_matching import sample_times


class FlowDraws(NamedTuple):
    """The draws of one pass over B windows of H steps, float32."""

    noise: Tensor  # (B, H, D) standard normal
    timestep: Tensor  # (B,) in [0, 1], from the config's time distribution
    prefix: Tensor  # (B,) uniform in [0, 1): whether there is a clean prefix, and how long it is
    latent_offset: Tensor  # (B, z) standard normal: the latent's noise
    latent_drop: Tensor  # (B,) uniform in [0, 1): whether the null stands for the latent

    def rows(self, start: int, count: int) -> FlowDraws:
        """The draws of windows `start` to `start + count`."""
        return FlowDraws(*(tensor[start : start + count] for tensor in self))

    def by_window(self, windows: int) -> FlowDraws:
        """Of K B rows those of each of B `windows`, (B, K, ...); of B rows the same as they are."""
        each = len(self.timestep) // windows
        return self if each == 1 else FlowDraws(*(tensor.unflatten(0, (windows, each)) for tensor in self))


def draw_flow(
    config: MotionConfig,
    batch_size: int,
    steps: int,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> FlowDraws:
    """Draws for `batch_size` windows of `steps` steps, on `device`; `generator` may be of another one."""
    source = generator.device if generator is not None else device
    expert = config.expert
    times = sample_times(
        config.time_distribution,
        batch_size,
        alpha=config.time_alpha,
        beta=config.time_beta,
        device=source,
        generator=generator,
    )
    draws = FlowDraws(
        noise=torch.randn(batch_size, steps, expert.action_dim, device=source, generator=generator),
        timestep=times,
        prefix=torch.rand(batch_size, device=source, generator=generator),
        latent_offset=torch.randn(batch_size, expert.latent_dim, device=source, generator=generator),
        latent_drop=torch.rand(batch_size, device=source, generator=generator),
    )
    return FlowDraws(*(tensor.to(device) for tensor in draws))


def prefix_lengths(uniform: Tensor, valid_steps: Tensor, probability: float, longest: int) -> Tensor:
    """Clean leading steps of each window, (B,) long: 0, or with `probability` one of 1 to `longest`, all as likely.

    Args:
        uniform: (B,) in [0, 1), which decides both.
        valid_steps: (B,) long, real steps of each window; one of them is always left to be predicted.
    """
    most = (valid_steps - 1).clamp(min=0, max=longest)
    lengths = torch.minimum(1 + (uniform / probability * most).long(), most)
    return torch.where(uniform < probability, lengths, 0)


__all__ = ["FlowDraws", "draw_flow", "prefix_lengths"]
