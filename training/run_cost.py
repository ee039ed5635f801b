"""What a run took, for its card: minutes, hardware, memory. Measured, and the same for every stage."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


class RunCost(TrainerCallback):
    """Add it to a Trainer; `facts` are what has been measured up to the last step, with evaluations and saves between.

    What comes behind that step is left out, so that two cards of the same weights say the same.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # of training, on the wall's clock; of a run that was resumed, those since
        self._memory: int | None = None
        self._began = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds, self._began, self._first_step = 0.0, time.monotonic(), state.global_step
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds, self._memory = time.monotonic() - self._began, peak_memory(args.device)

    def facts(self, args: TrainingArguments) -> dict[str, Any]:
        """`cost` of a card's `training`. Nothing before its first step."""
        if not self.seconds:
            return {}
        memory = self._memory
        minutes, since = round(self.seconds / 60, 1), self._first_step
        facts = {
            "minutes of training": f"{minutes}, since it was resumed at step {since}" if since else minutes,
            "device": device_name(args.device),
            "processes": args.world_size,
            "peak memory": f"{memory / 1e9:.1f} GB" + (" a process" if args.world_size > 1 else "") if memory else None,
        }
        return {name: value for name, value in facts.items() if value is not None}


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has needed at most: on a GPU as PyTorch allocated them, else in all; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads that PyTorch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """As Linux names it; elsewhere, and where Linux does not, the architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine() or "CPU"


__all__ = ["RunCost", "device_name", "peak_memory"]
