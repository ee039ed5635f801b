"""Files of a dataset on the Hub, fetched when they are needed and never more than those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...hub_cards.checkpoints import split_revision


class HubDataset:
    """A dataset repository `owner/name` or `owner/name@revision`, fetched into the Hub's cache part by part.

    The first part settles the commit that a revision stands for, the others are of the same one. Offline
    (`HF_HUB_OFFLINE=1`), or when the Hub is out of reach, what lies in the cache is taken; offline the Hub is never
    called.
    """

    def __init__(self, name: str) -> None:
        self.name, self._revision = split_revision(name)

    def fetch(self, patterns: Sequence[str]) -> Path:
        """The folder that holds all files that match one of `patterns` (and others fetched before).

        Raises FileNotFoundError when there is no such dataset, or neither the Hub nor the cache has it.
        """
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(
                    self.name, repo_type="dataset", revision=self._revision, allow_patterns=list(patterns)
                )
            )
        except Exception as error:
            raise FileNotFoundError(
                f"{self.name}{f'@{self._revision}' if self._revision else ''} is neither a folder here nor could it be "
                f"fetched as a dataset from the Hub: {error}"
            ) from error
        self._revision = folder.name
        return folder


def repository_name(folder: Path) -> str | None:
    """The name of the repository of which `folder` is a copy in the Hub's cache, where it is called by its commit."""
    place = folder.resolve().parent
    return place.parent.name.rpartition("--")[2] if place.name == "snapshots" else None


__all__ = ["HubDataset", "repository_name"]
