"""How a policy sees and hears, told by its config: for cards and for `priorvla info`. Loads no deep learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoints import config_fields, kind_of

# `config.fusion` -> how the action expert comes to know what the backbone does; {seen} is what there is to know.
HOSTS = {
    "latent": "a query token gathers {seen} into one vector z', which the action expert is given in the place of an "
    "action prior's latent; its layers read nothing of the backbone themselves",
    "cross": "layers of the action expert look up {seen} in the last backbone layer that is used, by a "
    "cross-attention of their own (as in GR00T)",
    "joint": "layers of the action expert attend at once to the chunk's actions and to {seen}, by keys and values that "
    "are projected from a layer of the backbone (as in pi0)",
    "gated": "the action expert carries {seen} along as a stream beside its actions, into which layers of the backbone "
    "are taken through gates (as in APT)",
}
# The kind of an expert layer -> what it sees of an observation.
SEES = {
    "vision": "images, never the instruction",
    "vision_language": "images and the instruction",
}
# A gate of an expert layer, see modeling_priorvla/hosts.py -> what goes through it.
GATES = {
    "cross": "what actions look up in the backbone",
    "memory": "what actions attend to beside themselves",
    "vision": "what the stream takes in of images",
    "words": "what it takes in of the instruction",
    "stream": "what the layer makes of the stream",
    "context_attn": "what its attention makes of the context tokens",
    "context_mlp": "what its MLP makes of them",
}


@dataclass(frozen=True)
class LayerGroup:
    """The expert's layers of one kind, by their index, and the backbone layers that they read, in the same order."""

    kind: str
    layers: tuple[int, ...]
    taps: tuple[int, ...]

    @property
    def sees(self) -> str:
        """What these layers see of an observation, in words."""
        return SEES[self.kind]


def host_sentence(config: Any) -> str:
    """How the host `config.fusion` works, in words without a full stop."""
    fields = config_fields(config)
    seen = "what is seen and asked for" if kind_of(fields) == "vla" else "what is seen"
    return HOSTS[fields["fusion"]].format(seen=seen)


def layer_groups(config: Any) -> list[LayerGroup]:
    """The expert's layers that read the backbone, by kind, in the order in which the kinds first occur."""
    expert = config_fields(config)["expert"]
    layers = list(enumerate(zip(expert["expert_layers"], expert["tap_layers"], strict=True)))
    groups = []
    for found in dict.fromkeys(kind for _, (kind, tap) in layers if tap is not None):
        own = [(index, tap) for index, (kind, tap) in layers if kind == found]
        groups.append(LayerGroup(found, tuple(index for index, _ in own), tuple(tap for _, tap in own)))
    return groups


def gate_table(gates: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Gates named `layers.<index>.<gate>_gate`: the gates that there are, and a row a layer, its index in front."""
    layers: dict[str, dict[str, str]] = {}
    for name, value in gates.items():
        layer, _, gate = name.rpartition(".")
        layers.setdefault(layer.removeprefix("layers."), {})[gate.removesuffix("_gate")] = f"{value:.4g}"
    found = list(dict.fromkeys(gate for values in layers.values() for gate in values))
    return found, [[layer, *(values.get(gate, "–") for gate in found)] for layer, values in layers.items()]


__all__ = ["GATES", "HOSTS", "SEES", "LayerGroup", "gate_table", "host_sentence", "layer_groups"]
