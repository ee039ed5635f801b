"""Our policies inside LeRobot: import this package and LeRobot knows the policy type `priorvla`.

`lerobot-train --policy.discover_packages_path=priorvla.deployment.lerobot …` does so, and so does the installed
distribution `lerobot_policy_priorvla`. LeRobot finds the rest by name: `configuration_priorvla`, `modeling_priorvla`,
`processor_priorvla`. This is the only place that imports lerobot, which is no dependency of ours.
"""

from __future__ import annotations

try:
    import lerobot as _lerobot  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lerobot is not installed: it needs Python 3.12 and an environment in which its older pins win, "
        "`pip install 'lerobot[training]==0.6.1'` and priorvla after it"
    ) from error

from .configuration_priorvla import PriorVLAConfig

__all__ = ["PriorVLAConfig"]
