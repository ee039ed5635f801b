"""The instructions of trajectories: each text tokenised once, and encoded once where it is read without the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ...modeling_priorvla.backbone_features import Backbone
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .trajectory import TrajectorySource

TEXTS_AT_ONCE = 256  # encoded


@dataclass(frozen=True)
class Instructions:
    """What is said in N trajectories, in M distinct texts of at most L tokens.

    Args:
        text_of: (N,) long, the text of every trajectory.
        input_ids, attention_mask: (M, L) long; padding that all texts share is cut off.
    """

    text_of: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    @classmethod
    def of_sources(cls, sources: Sequence[TrajectorySource], processor: PriorVLAProcessor) -> Self:
        """Those of the sources' trajectories, one after the other."""
        tasks = [trajectory.task for source in sources for trajectory in source.trajectories]
        texts = sorted(set(tasks))
        place = {text: index for index, text in enumerate(texts)}
        inputs = processor(embodiment=processor.embodiments[0].name, text=texts)
        used = inputs["attention_mask"].any(dim=0).nonzero()
        columns = slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 1)
        return cls(
            torch.tensor([place[task] for task in tasks], dtype=torch.long),
            inputs["input_ids"][:, columns].contiguous(),
            inputs["attention_mask"][:, columns].contiguous(),
        )

    def split(self, counts: list[int]) -> list[Self]:
        """Those of the first `counts[0]` trajectories, of the next `counts[1]`, and so on; all keep L."""
        return [replace(self, text_of=text_of) for text_of in self.text_of.split(counts)]

    def key(self) -> dict[str, Any]:
        """JSON: the tokens of every trajectory as a backbone sees them, None at padding."""
        rows = [
            [token if real else None for token, real in zip(ids, mask, strict=True)]
            for ids, mask in zip(self.input_ids.tolist(), self.attention_mask.tolist(), strict=True)
        ]
        used, text_of = self.text_of.unique(return_inverse=True)
        return {"texts": [rows[text] for text in used.tolist()], "text_of": text_of.tolist()}


@torch.no_grad()
def encode_instructions(instructions: Instructions, backbone: Backbone) -> Tensor:
    """Features (M, 1, L, width) of all texts, by a backbone that reads them without vision; few, so kept in memory."""
    device = next(backbone.parameters()).device
    inputs = (instructions.input_ids.split(TEXTS_AT_ONCE), instructions.attention_mask.split(TEXTS_AT_ONCE))
    parts = [backbone.encode_language(None, ids.to(device), mask.to(device)) for ids, mask in zip(*inputs, strict=True)]
    return torch.cat([language.hidden_states.cpu() for language in parts])


__all__ = ["Instructions", "encode_instructions"]
