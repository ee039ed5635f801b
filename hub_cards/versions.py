"""Versions of the libraries that a result was made with."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

VERSIONED = ("priorvla", "torch", "transformers", "diffusers", "numpy")


def installed_versions(packages: Iterable[str] = VERSIONED) -> dict[str, str]:
    """The installed version of each of `packages`, by distribution name; what is not installed is left out."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


__all__ = ["VERSIONED", "installed_versions"]
