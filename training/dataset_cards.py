"""The card of a dataset that lies in a folder, with a plot of its motion: `README.md` and `motion.png`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hub_cards.card import CARD_FILE
from ..hub_cards.card_pictures import MOTION
from ..hub_cards.card_plots import save_plot
from ..hub_cards.dataset_card import create_dataset_card
from ..hub_cards.dataset_plots import motion_timeline
from .data.lerobot_layout import LeRobotLayout
from .data.lerobot_metadata import read_layout
from .data.readers import load_trajectories
from .inspection.motion_checks import idle_steps
from .inspection.recording import Recording
from .inspection.thresholds import InspectionThresholds

SHOWN_EPISODES = 40


def write_dataset_card(
    folder: str | Path,
    *,
    license: str | None = None,  # noqa: A002, the Hub's word for it
    name: str | None = None,
    origin: Mapping[str, Any] | None = None,
    units: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Reads a LeRobot dataset, of ours or of another's writing, and puts a card into its folder; returns the card.

    Args:
        license, name, origin, units: see `create_dataset_card`.
        overwrite: replace a card that is there.

    Raises:
        FileExistsError: there is a card, and `overwrite` is not set: somebody may have written it.
        FileNotFoundError: there is no LeRobot dataset. ValueError: as `load_trajectories` and `create_dataset_card`.
    """
    root = Path(folder)
    file = root / CARD_FILE
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists: pass overwrite=True to replace it")
    layout = read_layout(root)
    source = load_trajectories(root)
    card = create_dataset_card(
        source.embodiment,
        tasks=Counter(trajectory.task for trajectory in source.trajectories),
        frames=source.num_steps,
        cameras=_camera_sizes(layout),
        video=any(feature.get("dtype") == "video" for feature in layout.features.values()),
        license=license,
        name=name,
        origin=origin,
        units=units,
        plots=[MOTION],
    )
    _save_motion(Recording(source), root / MOTION)  # before the card, which shows it
    card.save(file)
    return file


def _camera_sizes(layout: LeRobotLayout) -> dict[str, tuple[int, int]]:
    """(height, width) by camera; the axes of a picture stand in either order, and `names` says in which."""
    sizes = {}
    for camera, key in layout.cameras.items():
        shape = layout.features[key].get("shape") or []
        if len(shape) == 3:
            sizes[camera] = (shape[1], shape[2]) if shape[0] in (1, 3) else (shape[0], shape[1])
    return sizes


def _save_motion(recording: Recording, file: Path) -> None:
    speed, slices = recording.speed(), list(recording.episode_slices())[:SHOWN_EPISODES]
    idle = idle_steps(recording, InspectionThresholds())[: len(slices)]
    names = [str(number) for number in recording.numbers[: len(slices)]]
    save_plot(motion_timeline([speed[rows] for rows in slices], idle, names, recording.period), file)


__all__ = ["write_dataset_card"]
