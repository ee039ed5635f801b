"""Dataset cards: what a recorded dataset holds, how it came about, and a snippet that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..configuration.embodiment import Embodiment
from .card import LIBRARY, compose_card, require_license, require_readable
from .card_ranges import value_ranges
from .card_text import flattened, render
from .checkpoints import is_hub_id
from .embodiment_facts import describe_embodiment
from .privacy import scrub
from .versions import installed_versions

DATA_FILES = "data/*/*.parquet"  # LeRobot's, in both of its versions
SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7, "10M<n<100M": 1e8}
LARGEST = "100M<n<1B"
SHOWN_TASKS = 60


def create_dataset_card(
    embodiment: Embodiment,
    *,
    tasks: Mapping[str, int],
    frames: int,
    cameras: Mapping[str, tuple[int, int]] | None = None,
    video: bool = False,
    license: str | None = None,  # noqa: A002, the Hub's word for it
    name: str | None = None,
    origin: Mapping[str, Any] | None = None,
    units: str | None = None,
    plots: Sequence[str] = (),
) -> DatasetCard:
    """The card of a LeRobot dataset of one body. Absolute paths and secrets in any argument are scrubbed.

    `write_dataset_card` in `training` finds these facts in a dataset's folder.

    Args:
        tasks: the number of episodes of each instruction.
        frames: control steps, of all episodes together.
        cameras: (height, width) in pixels by camera name; video: whether pictures are films.
        license: the Hub's identifier. Data are whose they are, and nobody else can decide on it: without one the header
            names none, which the Hub takes for all rights reserved, and the card says so.
        name: the card's title, or the dataset's Hub id. Default: whose motion it is.
        origin: how the data came about: `told`, sentences; `solved`, by task the share of starts that were solved;
            `versions` of what made them, by default ours; every other key is printed as a fact.
        units: of the numbers, in words (`joint angles in radians`); the format does not keep them.
        plots: file names of pictures that lie beside the card and are shown, see `card_pictures.PLOTS`.

    Raises:
        ValueError: when there is no task or no frame, on a malformed licence, or metadata that huggingface_hub does not
            read back.
    """
    if not tasks or frames < 1:
        raise ValueError(f"a dataset with {len(tasks)} tasks and {frames} frames has no card: record an episode first")
    if license is not None:
        require_license(license)
    title = scrub(name) if name else f"Motion of {embodiment.name}"
    made = scrub(dict(origin or {}))
    told, solved = made.pop("told", None), made.pop("solved", None) or {}
    versions = made.pop("versions", None) or (installed_versions((LIBRARY,)) if origin else None)
    data = DatasetCardData(
        license=license,
        pretty_name=title,
        task_categories=["robotics"],
        size_categories=[next((size for size, limit in SIZES.items() if frames < limit), LARGEST)],
        tags=["LeRobot", LIBRARY, embodiment.name],
        configs=[{"config_name": "default", "data_files": DATA_FILES}],
    )
    text = render(
        "dataset.md",
        title=title,
        dataset=title if is_hub_id(title) else ".",
        body={**describe_embodiment(embodiment), "ranges": value_ranges(embodiment)},
        units=scrub(units),
        cameras={scrub(camera): size for camera, size in (cameras or {}).items()},
        video=video,
        episodes=sum(tasks.values()),
        frames=frames,
        minutes=frames / embodiment.control_rate / 60,
        tasks=[(scrub(task), count) for task, count in tasks.items()][:SHOWN_TASKS],
        unshown_tasks=max(0, len(tasks) - SHOWN_TASKS),
        told=told,
        solved=solved,
        origin=flattened(made),
        versions=versions,
        license=license,
        plots=plots,
    )
    card = compose_card(DatasetCard, data, text)
    require_readable(card)
    return card


__all__ = ["create_dataset_card"]
