"""What a Trainer needs to train on a stream: its own loader, and its position in every checkpoint."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from .data.streaming import StreamingLoader, StreamingTrajectoryDataset


class TrainsOnStreams(Trainer):
    """A Trainer that takes a `StreamingTrajectoryDataset` as `train_dataset`, and every other one as before.

    A stream deals its files out to ranks and workers by itself, so that its loader is used as it is: accelerate would
    share the batches out a second time, or send them from one rank to the others. Every rank saves its position into
    the checkpoint, and a resumed run goes on with the very next batch instead of reading all that came before.
    """

    _stream: StreamingLoader | None = None
    _resumed_from: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        if isinstance(self.train_dataset, StreamingTrajectoryDataset):
            self.args.ignore_data_skip = True
            self._resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Raises ValueError when the stream's batches are not of the size that the arguments say."""
        dataset: Any = self.train_dataset
        if not isinstance(dataset, StreamingTrajectoryDataset):
            return super().get_train_dataloader()
        if dataset.batch_size != self.args.train_batch_size:
            raise ValueError(
                f"the stream's batch_size={dataset.batch_size} and per_device_train_batch_size="
                f"{self.args.train_batch_size} must be equal"
            )
        workers = self.args.dataloader_num_workers
        self._stream = StreamingLoader(dataset, workers, pin_memory=self.args.dataloader_pin_memory)
        if self._resumed_from is not None:
            self._stream.resume(self._resumed_from)
        return self._stream  # type: ignore[return-value]  # what the loop needs of a loader is that it is iterated

    def _save_rng_state(self, output_dir: str) -> None:
        """Every rank comes here, before the file that says that the checkpoint is complete."""
        super()._save_rng_state(output_dir)
        if self._stream is not None:
            self._stream.save(output_dir)


__all__ = ["TrainsOnStreams"]
