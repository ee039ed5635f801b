"""Makes LeRobot know the policy type `priorvla`: its commands import every distribution of such a name."""

from priorvla.deployment.lerobot import PriorVLAConfig

__all__ = ["PriorVLAConfig"]
