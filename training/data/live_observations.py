"""Windows of motion beside the pixels and words at their first step, for a backbone that is trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset

from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .instructions import Instructions
from .observation_images import ObservationImages, require_same_trajectories
from .trajectory import TrajectorySource
from .trajectory_dataset import TrajectoryDataset


class LiveObservationDataset(Dataset):
    """`windows` and, for each, `pixel_values` (B, C, 3, h, w), `pixel_attention_mask` (B, C), `input_ids` and
    `attention_mask` (B, L).

    For a backbone whose features change (LoRA, full fine-tuning) or are continued from (a tail of the backbone's own);
    otherwise `ObservationDataset` saves the encoding. Frames are read and prepared when a batch is asked for, in the
    DataLoader's workers if it has some. C is that of the body with the most cameras, and L the longest instruction's,
    as in cached features.

    Args:
        windows: over `sources`, in this order.
        sources: loaded with frames.
        processor: prepares images and words; its embodiments say which cameras are read, and in which order.
        language: false leaves words out, and nothing of them is read.

    Raises:
        ValueError: when a dataset was loaded without frames or lacks a camera, or `windows` were made from other
            sources.
    """

    def __init__(
        self,
        windows: TrajectoryDataset,
        sources: Sequence[TrajectorySource],
        processor: PriorVLAProcessor,
        *,
        language: bool = True,
    ) -> None:
        require_same_trajectories(windows, sources)
        self.windows = windows
        self._images = ObservationImages(sources, processor)
        self._instructions = Instructions.of_sources(sources, processor) if language else None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the windows `indices`."""
        trajectory, step = self.windows.frame_of(indices)
        batch = self.windows.__getitems__(indices) | self._images.prepared(trajectory, step)
        if self._instructions is not None:
            text = self._instructions.text_of[trajectory]
            batch["input_ids"] = self._instructions.input_ids[text]
            batch["attention_mask"] = self._instructions.attention_mask[text]
        return batch


__all__ = ["LiveObservationDataset"]
