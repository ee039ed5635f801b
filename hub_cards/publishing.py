"""Publishing a checkpoint: weights, processor, embodiments and card, together or not at all."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, overload

from huggingface_hub import CommitInfo, ModelCard
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from ..configuration.embodiment import EMBODIMENTS_FILE, Embodiment, save_embodiments
from ..modeling_priorvla.adapters import adapter_tensors, adapters_in, save_adapter
from ..modeling_priorvla.attached_backbone import TRAINED, BackbonePreTrainedModel
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .adapter_facts import adapter_config
from .card import CARD_FILE, load_card
from .card_pictures import gather_pictures
from .card_plots import save_success_plot
from .checkpoints import is_hub_id, kind_of
from .licenses import require_license
from .privacy import require_public, scrub
from .published_base import with_published_base, write_base
from .published_card import published_card
from .published_files import move_into_place, require_free
from .uploading import upload_checkpoint

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.json"
FORMAT = {"format": "pt"}  # of the tensors, as transformers notes it


class SavedProcessor(Protocol):
    """What `publish` needs of a processor: transformers' way to save it."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any: ...


@overload
def publish(model: PreTrainedModel, processor: SavedProcessor, destination: Path, **options: Any) -> Path: ...


@overload
def publish(
    model: PreTrainedModel, processor: SavedProcessor, destination: str, **options: Any
) -> Path | CommitInfo: ...


def publish(
    model: PreTrainedModel,
    processor: SavedProcessor,
    destination: str | Path,
    *,
    card: ModelCard | None = None,
    license: str | None = None,  # noqa: A002, the Hub's word for it
    embodiments: Sequence[Embodiment] | None = None,
    overwrite: bool = False,
    private: bool = True,
    code: bool = False,
    report: str | Path | None = None,
    pictures: str | Path | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    **card_values: Any,
) -> Path | CommitInfo:
    """Writes a checkpoint that others can load: `config.json`, weights, processor, `embodiments.json`, `README.md`.

    With `metrics` among `card_values` it also has the `metrics.json` that `priorvla info` shows. Of a model with an
    adapter in it (`add_adapter`) the adapter alone is published; it must find its base on the Hub.

    It appears at once, complete, or not at all: a folder is made beside its place and moved there, a repository on the
    Hub gets one commit (see `upload_checkpoint`). A VLA's trajectory encoder, which only training needs, is left out
    unless its history needs it. Text files are searched for absolute paths and secrets before anything appears and
    before any byte leaves this machine.

    Args:
        model: an `ActionPriorModel` or a `PriorVLAModel`.
        processor: the processor that belongs to it.
        destination: a Hub id (`owner/name`), or a local folder: a `Path`, or a string that cannot be a Hub id
            (`./runs/prior`, `/data/prior`).
        card: the card. Default: one made by `create_card` from the model's config and `card_values`.
        license: the Hub's identifier of the weights' licence; needed unless `card` names one, and replaces the card's.
        embodiments: in the order of the model's embodiment id. Default: the processor's.
        overwrite: replace a checkpoint that is already there, and no file that publishing does not write.
        private: who can see a repository on the Hub: you and your organisation, or everybody.
        code: also the modules of ours that the model needs, for `trust_remote_code=True` without this package.
        report: a `report.json` to go with it; paths and secrets in it are scrubbed.
        pictures: folder that has the pictures which `card` shows; they go with it. Without, ours are left out of the
            card, and somebody's own are an error. Success by task is drawn where `evaluation` is given.
        commit_message, token, revision: of a commit on the Hub; see `upload_checkpoint`.
        card_values: `training`, `metrics`, `evaluation`, `datasets`, `base_model`, `name` of `create_card`; with
            `card` only `metrics`, `evaluation`, `base_model` and `name`, which are added to it.

    Returns:
        The folder; of a repository on the Hub the commit, as a string its address, `.oid` its id.

    Raises:
        ValueError: when the licence is missing or none of the Hub's, no embodiment is known, a file would hold an
            absolute path or a secret, or an adapter's base is not on the Hub.
        FileExistsError: when there is something at the destination and `overwrite` is False, or it is no checkpoint,
            or a run's folder.
        PermissionError, ConnectionError: of the Hub; see `upload_checkpoint`.
    """
    embodiments = _embodiments_of(processor) if embodiments is None else list(embodiments)
    values = dict(card_values)
    base, adapter = card_values.get("base_model"), None
    if isinstance(model, PriorVLAModel) and (adapter := adapter_config(model)) is not None:
        adapter = with_published_base(adapter, base, hub_destination(destination), token)
    if card is None and isinstance(model, PriorVLAModel):
        values.setdefault("gates", model.gate_values())
        values.setdefault("adapter", adapter)
    return publish_files(
        lambda folder: _save_model(model, folder, adapter),
        processor,
        destination,
        card=lambda repo: published_card(
            model.config, card, license, embodiments, _published_size(model), repo, values, _is_adapted(model)
        ),
        embodiments=embodiments,
        metrics=card_values.get("metrics"),
        evaluation=card_values.get("evaluation"),
        report=report,
        pictures=pictures,
        code=code,
        overwrite=overwrite,
        private=private,
        commit_message=commit_message,
        token=token,
        revision=revision,
    )


def publish_files(
    save: Callable[[Path], None],
    processor: SavedProcessor,
    destination: str | Path,
    *,
    card: Callable[[str | None], ModelCard],
    embodiments: Sequence[Embodiment],
    metrics: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    report: str | Path | None = None,
    pictures: str | Path | None = None,
    code: bool = False,
    overwrite: bool = False,
    **upload: Any,
) -> Path | CommitInfo:
    """What `publish` does once it is known what to save.

    Args:
        save: writes config and weights into a folder.
        card: makes the card of a Hub id, or of a folder (None).
        upload: of `upload_checkpoint`.
    """
    repo = hub_destination(destination)
    folder = Path(destination).expanduser().absolute()
    if repo is None:
        require_free(folder, overwrite)
    finished = card(repo)
    require_license(finished.data.get("license"), decided=True)
    with _staging(None if repo else folder) as staging:
        save(staging)
        processor.save_pretrained(staging)
        if not (staging / EMBODIMENTS_FILE).exists():
            save_embodiments(embodiments, staging)
        if evaluation:
            save_success_plot(evaluation, staging)
        finished.text = gather_pictures(finished.text, None if pictures is None else Path(pictures), staging)
        finished.save(staging / CARD_FILE)
        if metrics:
            _write_json(staging / METRICS_FILE, dict(metrics))
        if report is not None:
            _write_json(staging / REPORT_FILE, json.loads(Path(report).read_text(encoding="utf-8")))
        if code:
            from .bundled_code import bundle_code

            bundle_code(staging)
        else:
            _forget_code(staging)
        require_public(staging)
        if repo is not None:
            return upload_checkpoint(staging, repo, overwrite=overwrite, **upload)
        move_into_place(staging, folder)
    return folder


def hub_destination(destination: str | Path) -> str | None:
    """The Hub id that something is published to, or None of a folder."""
    # A string `owner/name` is a Hub id, whatever lies on this disk: its meaning must not depend on that.
    return destination if isinstance(destination, str) and is_hub_id(destination) else None


@contextmanager
def _staging(folder: Path | None) -> Iterator[Path]:
    """A new folder beside `folder`, or wherever there is room for it; nothing of it stays."""
    if folder is None:
        staging = Path(tempfile.mkdtemp(prefix="priorvla-publish-"))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
        staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_json(file: Path, facts: Any) -> None:
    file.write_text(json.dumps(scrub(facts), indent=2, default=float) + "\n", encoding="utf-8")


def _forget_code(folder: Path) -> None:
    """Takes classes out of configs whose modules do not go along; of another repository's they stay."""
    for file in folder.glob("*config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        places = [place for entry in (config.pop("auto_map", None) or {}).values() for place in _places(entry)]
        if places and not all("--" in place for place in places):
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _places(entry: Any) -> list[str]:
    """Of a class in `auto_map`; a tokenizer has two, and None where it lacks one."""
    return [entry] if isinstance(entry, str) else [place for place in entry or [] if place]


def _embodiments_of(processor: Any) -> list[Embodiment]:
    """The processor's `embodiments`, a sequence or a mapping by name."""
    held = getattr(processor, "embodiments", None)
    if not held:
        raise ValueError(f"{type(processor).__name__} has no embodiments: pass embodiments= in the model's order")
    return list(held.values() if isinstance(held, Mapping) else held)


def _is_adapted(model: PreTrainedModel) -> bool:
    return isinstance(model, BackbonePreTrainedModel) and adapters_in(model) is not None


def _save_model(model: PreTrainedModel, folder: Path, adapter: Mapping[str, Any] | None) -> None:
    """Weights and config, without the parts that only training needs; of a model with an adapter, that alone.

    `adapter`: its config, which says where its base is on the Hub.
    """
    if adapter is not None:
        save_adapter(cast(BackbonePreTrainedModel, model), folder)
        write_base(folder, adapter)
        return
    weights = model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if _is_published(model.config, name)}
    if len(kept) == len(weights):
        model.save_pretrained(folder)
        return
    model.save_pretrained(folder, state_dict=kept)
    _without_encoder(model.config).save_pretrained(folder)


def copy_model(
    saved: Path,
    folder: Path,
    config: PreTrainedConfig,
    *,
    adapted: bool,
    base: str | None = None,
    repo: str | None = None,
    token: str | None = None,
) -> None:
    """Puts into `folder` what `publish` would save of the model whose files are in `saved`, without loading it.

    Args:
        adapted: whether that is an adapter. base, repo, token: of one, see `with_published_base`.

    Raises:
        ValueError: `saved` holds the other, too: loading it would not give what is copied; and as
            `with_published_base`.
        FileNotFoundError: `saved` does not hold all of the weights.
    """
    files = [ADAPTER_FILE] if adapted else _weight_files(saved)
    _require_one_kind(saved, adapted)
    if missing := [name for name in files if not (saved / name).is_file()]:
        raise FileNotFoundError(f"{saved / missing[0]} is missing: without its weights this is no checkpoint")
    if adapted:
        for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE):
            shutil.copyfile(saved / name, folder / name)
        known = json.loads((saved / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
        write_base(folder, with_published_base(known, base, repo, token))
        return
    whole = [_copy_weights(saved / name, folder, config) for name in files]
    index = saved / SAFE_WEIGHTS_INDEX_NAME
    if files != [SAFE_WEIGHTS_NAME]:
        told = json.loads(index.read_text(encoding="utf-8"))
        places = {name: file for name, file in told["weight_map"].items() if _is_published(config, name)}
        (folder / index.name).write_text(json.dumps({**told, "weight_map": places}, indent=2) + "\n", encoding="utf-8")
    if all(whole):
        shutil.copyfile(saved / CONFIG_FILE, folder / CONFIG_FILE)
    else:
        _without_encoder(config).save_pretrained(folder)


def _weight_files(saved: Path) -> list[str]:
    """The files that a whole model is loaded from; as transformers, one file before several."""
    index = saved / SAFE_WEIGHTS_INDEX_NAME
    if (saved / SAFE_WEIGHTS_NAME).is_file() or not index.is_file():
        return [SAFE_WEIGHTS_NAME]
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _require_one_kind(saved: Path, adapted: bool) -> None:
    whole = [name for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if (saved / name).is_file()]
    beside = [name for name in (ADAPTER_FILE, ADAPTER_CONFIG_FILE) if (saved / name).is_file()]
    if other := whole if adapted else beside:
        raise ValueError(
            f"{saved} holds {other[0]}, but {'an adapter' if adapted else 'a whole model'} is to be published: one of "
            "them is left over from before, so move it away"
        )


def _copy_weights(file: Path, folder: Path, config: PreTrainedConfig) -> bool:
    """The published tensors of a file; whether they are all of them."""
    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
        kept = {name for name in names if _is_published(config, name)}
        if len(kept) == len(names):
            shutil.copyfile(file, folder / file.name)
        elif kept:
            save_file({name: tensors.get_tensor(name) for name in names if name in kept}, folder / file.name, FORMAT)
    return len(kept) == len(names)


def _without_encoder(config: PreTrainedConfig) -> PreTrainedConfig:
    published = copy.deepcopy(config)
    published.encoder = None
    return published


def _published_size(model: PreTrainedModel) -> int:
    """Number of parameters in the checkpoint; of a backbone that adapters were trained on, theirs alone."""
    if isinstance(model, BackbonePreTrainedModel) and _is_adapted(model):
        return sum(tensor.numel() for tensor in adapter_tensors(model).values())
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if _is_published(model.config, name) and (parameter.requires_grad or not name.startswith(TRAINED))
    )


def _is_published(config: PreTrainedConfig, name: str) -> bool:
    """Whether a tensor is. A VLA's trajectory encoder is a target of distillation; acting runs it on history alone.

    A vision-action prior keeps its own: whoever goes on from it may want either.
    """
    trained_only = kind_of(config) == "vla" and not getattr(config, "use_history", False)
    return not (trained_only and name.startswith("encoder."))


__all__ = ["copy_model", "hub_destination", "load_card", "publish", "publish_files"]
