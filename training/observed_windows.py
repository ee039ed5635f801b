"""Windows of demonstrations with what is seen and heard at their first steps, in the cheapest way there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from ..modeling_priorvla.adapters import adapts_backbone
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .data.live_observations import LiveObservationDataset
from .data.observation_dataset import ObservationDataset
from .data.picture_interval import require_fresh_pictures
from .data.trajectory import TrajectorySource
from .data.trajectory_dataset import TrajectoryDataset


def observed_windows(
    model: PriorVLAModel,
    processor: PriorVLAProcessor,
    sources: Sequence[TrajectorySource],
    cache_dir: Path,
    *,
    max_cache_gb: float,
    stride: int = 1,
    weights: list[float] | None = None,
    adapted: bool = False,
) -> Dataset:
    """Windows of `sources` for `model`, whose backbone is attached.

    With cached features, which lie in `cache_dir`; with pixels where features change (a backbone that is trained, that
    holds an adapter, or is `adapted` by what is about to be put into it) or are continued from (a tail of its own).

    Raises ValueError as `require_fresh_pictures`, where `stride` meets pictures of earlier steps.
    """
    require_fresh_pictures(sources, stride)
    config, backbone = model.config, model.backbone
    windows = TrajectoryDataset(
        sources,
        processor.embodiments,
        config.expert.chunk_size,
        history_size=config.history_size if config.use_history else 0,
        stride=stride,
        weights=weights,
    )
    if adapted or adapts_backbone(model) or config.backbone_training != "frozen" or config.tail == "backbone":
        return LiveObservationDataset(windows, sources, processor, language=config.language)
    assert backbone is not None
    return ObservationDataset(
        windows, sources, backbone, processor, cache_dir, max_cache_gb, taps=config.taps, language=config.language
    )


__all__ = ["observed_windows"]
