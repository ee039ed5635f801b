"""Simulated robots behind one small interface (see `registry`)."""

from __future__ import annotations

from .registry import RobotEnvironment, list_instructions, list_tasks, make_environment

__all__ = ["RobotEnvironment", "list_instructions", "list_tasks", "make_environment"]
