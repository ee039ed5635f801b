"""The layout of a LeRobot dataset folder: what `meta/` says about it, independent of the format's version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE = "observation.state"
ACTION = "action"
IMAGE_PREFIX = "observation.images."
INFO_FILE = "meta/info.json"
TASKS_FILE = "meta/tasks.parquet"
STATS_FILE = "meta/stats.json"
EMBODIMENT_FILE = "meta/embodiment.json"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera lie: a video file and the second in it at which the episode starts."""

    file: Path
    start: float


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode as the metadata describe it; `videos` by feature key, `source` is the file that says so."""

    index: int
    length: int
    data_file: Path
    videos: dict[str, VideoSpan]
    source: Path


@dataclass(frozen=True)
class LeRobotLayout:
    """A dataset's metadata: `features` as in info.json, `fps` in Hz, `tasks` by task index, one record an episode."""

    root: Path
    fps: float
    robot_type: str | None
    features: dict[str, dict[str, Any]]
    total_episodes: int | None
    tasks: dict[int, str]
    episodes: list[EpisodeRecord]

    @property
    def info_file(self) -> Path:
        return self.root / INFO_FILE

    @property
    def cameras(self) -> dict[str, str]:
        """Feature key by camera name (`observation.images.front` is camera `front`); depth maps are no cameras."""
        return {
            key.removeprefix(IMAGE_PREFIX).removeprefix("observation."): key
            for key, feature in self.features.items()
            if feature.get("dtype") in ("image", "video") and not _is_depth(feature)
        }

    def dim(self, key: str) -> int:
        """Number of dimensions of a vector feature; 0 when the dataset does not have it."""
        if key not in self.features:
            return 0
        shape = self.features[key].get("shape")
        if not (isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int)):
            raise ValueError(f"{self.info_file}: features[{key!r}].shape is {shape!r}, expected one number of dims")
        return shape[0]

    def dim_names(self, key: str) -> list[str]:
        """Names of a vector feature's dimensions; `<key>_0`, `<key>_1`, ... where info.json does not name every one."""
        names = list(_flat_names(self.features.get(key, {}).get("names")))
        dim = self.dim(key)
        return names if len(names) == dim else [f"{key.rpartition('.')[2]}_{i}" for i in range(dim)]


def _flat_names(names: Any) -> Iterator[str]:
    """Names stand in info.json as a list, a list of lists, a dict of lists ({"motors": [...]}) or places ({"x": 0})."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, dict) and all(isinstance(place, int) for place in names.values()):
        yield from sorted(names, key=names.__getitem__)
    elif isinstance(names, dict):
        yield from _flat_names(list(names.values()))
    elif isinstance(names, list):
        for entry in names:
            yield from _flat_names(entry)


def _is_depth(feature: dict[str, Any]) -> bool:
    details = {**feature, **(feature.get("info") or {}), **(feature.get("video_info") or {})}
    return bool(details.get("is_depth_map") or details.get("video.is_depth_map"))


__all__ = ["EpisodeRecord", "LeRobotLayout", "VideoSpan"]
