"""A checkpoint of ours to a LeRobot policy folder and back, to the bit: the files are the same ones.

`python -m priorvla.deployment.lerobot.convert CHECKPOINT FOLDER [--embodiment NAME]`, and with `--back` the other way.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from lerobot.configs import FeatureType, PolicyFeature

from ...configuration.adapter_files import ADAPTER_CONFIG_FILE
from ...configuration.embodiment import Embodiment
from ...hub_cards.info import checkpoint_folder
from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from ...training.data.lerobot_layout import ACTION, IMAGE_PREFIX, STATE
from ...training.data.lerobot_staging import StagedFolder
from .configuration_priorvla import PriorVLAConfig
from .modeling_priorvla import CHECKPOINT_FOLDER
from .processor_priorvla import make_priorvla_pre_post_processors

# What a run keeps beside its checkpoint to be resumed from; none of it is read when a policy is loaded.
OF_THE_RUN = (".*", "checkpoint-*", "*.pt", "*.pth", "trainer_state.json", "raw_weights.safetensors")
DEFAULT_SIZE = (224, 224)  # height and width in pixels, where the image processor does not say


def to_lerobot(checkpoint: str | Path, folder: str | Path, *, embodiment: str | None = None) -> Path:
    """Makes the new policy folder `folder` of a checkpoint (folder or Hub id), whole or not at all.

    No weights are loaded.

    Args:
        embodiment: the robot that it will drive; may be left out when the checkpoint has only one.

    Raises:
        FileExistsError: `folder` exists. FileNotFoundError: `checkpoint` is no checkpoint.
        ValueError: an action prior, an adapter, or an embodiment that is unknown or not named.
    """
    target = _new(folder)
    source = checkpoint_folder(checkpoint)
    if (source / ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(f"{checkpoint} is an adapter, whose base is elsewhere: merge it first (merge_adapter)")
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source / 'config.json'} is missing: this folder holds no checkpoint")
    config = PriorVLAConfig(checkpoint=str(source), device="cpu")
    processor = PriorVLAProcessor.from_pretrained(source)
    body = processor.embodiment(embodiment)
    config.embodiment = body.name
    config.input_features, config.output_features = features_of(body, image_size(processor))
    with _whole(target) as growing:
        shutil.copytree(source, growing / CHECKPOINT_FOLDER, ignore=shutil.ignore_patterns(*OF_THE_RUN))
        config._save_pretrained(growing)
        for pipeline in make_priorvla_pre_post_processors(config):
            pipeline.save_pretrained(growing)
    return target


def from_lerobot(policy_folder: str | Path, folder: str | Path) -> Path:
    """Takes the checkpoint out of a policy folder, as converted or as `lerobot-train` wrote it, to the new `folder`.

    Whole or not at all. `policy_folder` may be a Hub id. Raises FileNotFoundError when there is no checkpoint in it,
    FileExistsError when `folder` exists.
    """
    target = _new(folder)
    source = _downloaded(policy_folder) / CHECKPOINT_FOLDER
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source / 'config.json'} is missing: {policy_folder} is no policy folder of priorvla")
    with _whole(target) as growing:
        shutil.copytree(source, growing)
    return target


def features_of(body: Embodiment, size: tuple[int, int]) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """What the policy takes and gives, as LeRobot describes it: raw state, pictures of `size` (height, width), actions.

    Pictures of other sizes are as good: the processor makes its own of any.
    """
    pictures = {f"{IMAGE_PREFIX}{name}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for name in body.cameras}
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (body.state_dim,)), **pictures}
    return inputs, {ACTION: PolicyFeature(FeatureType.ACTION, (body.action_dim,))}


def image_size(processor: PriorVLAProcessor) -> tuple[int, int]:
    """Height and width in pixels of what the processor makes of a picture."""
    size = getattr(processor.image_processor, "size", None) or {}
    return (size["height"], size["width"]) if "height" in size and "width" in size else DEFAULT_SIZE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where the files are not what they should be."""
    parser = argparse.ArgumentParser(prog="python -m priorvla.deployment.lerobot.convert", description=__doc__)
    parser.add_argument("source", help="our checkpoint, with --back a policy folder; each a folder or Hub id")
    parser.add_argument("folder", help="where to write; must not exist")
    parser.add_argument("--embodiment", help="the robot, where the checkpoint knows several")
    parser.add_argument("--back", action="store_true", help="from a LeRobot policy folder to our checkpoint")
    given = parser.parse_args(arguments)
    try:
        if given.back:
            print(from_lerobot(given.source, given.folder))
        else:
            print(to_lerobot(given.source, given.folder, embodiment=given.embodiment))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _downloaded(policy_folder: str | Path) -> Path:
    if Path(policy_folder).is_dir():
        return Path(policy_folder)
    try:
        return Path(snapshot_download(str(policy_folder), allow_patterns=[f"{CHECKPOINT_FOLDER}/*"]))
    except HFValidationError:
        raise FileNotFoundError(
            f"{policy_folder} does not exist: pass a policy folder, or its Hub id (owner/name)"
        ) from None


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, which becomes it at the end, and is removed after an error."""
    staged = StagedFolder(target, overwrite=False)
    try:
        yield staged.path
        staged.publish()
    finally:
        staged.remove()


def _new(folder: str | Path) -> Path:
    target = Path(folder)
    if target.exists():
        raise FileExistsError(f"{target} exists: name a new folder")
    return target


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["features_of", "from_lerobot", "image_size", "main", "to_lerobot"]
