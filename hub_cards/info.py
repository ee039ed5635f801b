"""`priorvla info`: what a checkpoint is, from its config, embodiments and metrics; no weights go into a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from ..configuration.embodiment import load_embodiments
from .checkpoints import kind_of
from .listening import listening
from .policy_facts import layer_groups
from .prior_metrics import metrics_by_body

DESCRIPTIONS = {
    "action-prior": "action prior (rung 1: motion)",
    "vision-action-prior": "vision-action prior (rung 2: sight)",
    "vla": "vision-language-action policy (rung 3)",
}
# A config's `backbone_training` -> where the backbone's weights are.
BACKBONE_TRAINING = {
    "frozen": "frozen, attached when loading",
    "lora": "attached when loading, its trained adapters (LoRA) are here",
    "full": "trained as a whole and here",
}


def describe_checkpoint(source: str | Path) -> str:
    """A few lines on a checkpoint folder or Hub id.

    Raises FileNotFoundError naming the missing file, or ValueError when it is no checkpoint of ours.
    """
    folder = checkpoint_folder(source)
    file = folder / "config.json"
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return "\n".join([f"{source}: adapter (LoRA) on a policy", *_adapter(folder), *_metrics(folder)])
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {source} is no checkpoint folder")
    config = json.loads(file.read_text(encoding="utf-8"))
    try:
        kind = kind_of(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    lines = [f"{source}: {DESCRIPTIONS[kind]}", *_architecture(config)]
    if kind != "action-prior":
        lines += _sight(config)
    lines += _weights(folder)
    lines += [_embodiment_line(embodiment) for embodiment in load_embodiments(folder)]
    return "\n".join(lines + _metrics(folder))


# of a checkpoint's files: weights, configs, card with its pictures, tokenizer; nothing that is a pickle
ENDINGS = (".json", ".md", ".safetensors", ".txt", ".jinja", ".model", ".png", ".jpg", ".jpeg")


def checkpoint_folder(source: str | Path) -> Path:
    """The folder of a checkpoint: `source` itself, or, for a Hub id, where its files were downloaded to.

    Raises FileNotFoundError when `source` is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=[f"*{ending}" for ending in ENDINGS]))
    except HFValidationError:
        raise FileNotFoundError(
            f"{source} does not exist: pass a checkpoint's folder or its Hub id (owner/name)"
        ) from None


def _metrics(folder: Path) -> list[str]:
    """What metrics.json has, measures of single bodies as a table."""
    file = folder / "metrics.json"
    if not file.is_file():
        return []
    others, heard = listening(json.loads(file.read_text(encoding="utf-8")))
    others, (headings, rows) = metrics_by_body(others)
    lines = [f"  {name:<28}{value:.4g}" for name, value in others.items()]
    if heard is not None:
        lines += ["", "  Does it listen? How far its actions move, over how far chance moves them:"]
        lines += [f"  {change:<28}{ratio} ({interval})" for change, ratio, interval in heard.rows]
        lines.append(f"  {heard.answer}")
    if rows:
        headings = ["on held-out motion", *headings[1:]]
        widths = [max(len(row[column]) for row in (headings, *rows)) + 2 for column in range(len(headings))]
        widths[0] = max(widths[0], 28)
        lines.append("")
        for row in (headings, *rows):
            first, *others_in_row = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {first}{''.join(others_in_row)}".rstrip())
    if (folder / "report.html").is_file():
        lines.append(f"\n  What the numbers mean, with plots: {folder / 'report.html'}")
    return lines


def _architecture(config: dict[str, Any]) -> list[str]:
    expert = config["expert"]
    return [
        f"  chunk                       {expert['chunk_size']} actions",
        f"  expert                      {len(expert['expert_layers'])} layers, {expert['hidden_size']} wide, latent "
        f"{expert['latent_dim']}",
    ]


def _sight(config: dict[str, Any]) -> list[str]:
    """How a policy or a vision-action prior comes to know what its backbone sees, a line a fact."""
    lines = [f"  host                        {config['fusion']}"]
    for group in layer_groups(config):
        layers, taps = (", ".join(map(str, numbers)) for numbers in (group.layers, group.taps))
        lines.append(f"  {group.kind + ' layers':<28}{layers} of the expert, reading {taps} of the backbone")
    if not config.get("language", True):
        lines.append("  instruction                 never read")
    backbone = config.get("backbone")
    named = (
        f"{backbone['name']} ({backbone['source']}, sha256 {str(backbone.get('sha256'))[:12]})" if backbone else "none"
    )
    return [
        *lines,
        f"  backbone                    {named}, {BACKBONE_TRAINING[config.get('backbone_training', 'frozen')]}",
        f"  history                     {config['history_size'] if config['use_history'] else 'none'}",
    ]


def _adapter(folder: Path) -> list[str]:
    config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    lines = [
        f"  base                        {config.get('base_model_name_or_path')}",
        f"  rank                        {config.get('r')}",
        *_weights(folder, ADAPTER_FILE),
    ]
    return lines + [_embodiment_line(embodiment) for embodiment in load_embodiments(folder)]


def _weights(folder: Path, pattern: str = "model*.safetensors") -> list[str]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder / pattern.replace('*', '')} is missing: the checkpoint has no weights")
    parameters = 0
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118, a safetensors handle is no mapping
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                parameters += size
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    return [f"  weights                     {parameters / 1e6:.2f} M parameters, {megabytes:.1f} MB"]


def _embodiment_line(embodiment: Any) -> str:
    cameras = ", ".join(embodiment.cameras) or "no camera"
    return (
        f"  embodiment                  {embodiment.name}: {embodiment.action_dim} action dims, {embodiment.state_dim} "
        f"state dims, {embodiment.control_rate:g} Hz, {cameras}, actions {embodiment.action_normalization.value}"
    )


__all__ = ["checkpoint_folder", "describe_checkpoint"]
