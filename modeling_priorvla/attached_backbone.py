"""A model that holds a backbone: a frozen one beside its weights, one that is trained among them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import logging

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from ..configuration.configuration_priorvla import PriorVLAConfig
from .adapter_places import HUB_ARGUMENTS, adapter_place, commit_of, lasting_place, weight_files
from .backbone import Backbone, load_backbone
from .backbone_training import train_backbone
from .motion_model import MotionPreTrainedModel

logger = logging.get_logger(__name__)

BackboneSource = str | os.PathLike[str] | nn.Module
TRAINED = "trained_backbone."


class BackbonePreTrainedModel(MotionPreTrainedModel):
    """Base of `PriorVLAModel`: attaches the backbone that `config.backbone` refers to.

    A frozen backbone is not part of the weights: `from_pretrained` attaches it, or the one given as `backbone=` (a
    folder, a module, or None to leave it off and pass features instead). With `config.backbone_training` "lora" or
    "full" it is a submodule, and the checkpoint has what was trained of it.
    """

    config: PriorVLAConfig
    _keys_to_ignore_on_load_unexpected = [rf"^{TRAINED}"]  # they are read once there is a backbone to read them into

    def __init__(self, config: PriorVLAConfig) -> None:
        super().__init__(config)
        self.__dict__["_frozen_backbone"] = None
        self._trained_at: tuple[str, dict[str, Any]] | None = (
            None  # the checkpoint that a trained backbone is read from
        )
        self.loaded_commit: str | None = None  # of the Hub; None of a folder
        self.loaded_from: tuple[str, dict[str, Any]] | None = None  # folder or Hub id, and arguments of the Hub
        # Of adapters: what the base's weights are, and its bodies, which are saved with every adapter.
        self.base_sha256: str | None = None
        self.base_embodiments: list[str] | None = None

    @property
    def backbone(self) -> Backbone | None:
        """The backbone, or None when it was left off."""
        return self._modules.get(TRAINED[:-1]) or self.__dict__["_frozen_backbone"]  # type: ignore[return-value]

    def attach_backbone(self, backbone: BackboneSource | None = None) -> Self:
        """Loads and holds the backbone of `config.backbone`, or that of a folder or module given instead.

        A module that others may hold too is copied before it is trained, or when it is trained elsewhere; one that is
        loaded or copied here loses the layers above the last tap, where that can be done.
        It is frozen, or trained as `config.backbone_training` says; then what the checkpoint that the model was loaded
        from has of it is read. Raises ValueError when its weights are not those that `config.backbone["sha256"]` names,
        its shape is not the one that the model was built for, or the checkpoint lacks something of it.
        """
        config = self.config
        shared = isinstance(backbone, nn.Module)
        if isinstance(backbone, nn.Module) and (
            config.backbone_training != "frozen" or any(parameter.requires_grad for parameter in backbone.parameters())
        ):
            backbone, shared = copy.deepcopy(backbone), False
        loaded = load_backbone(config.backbone, backbone)
        found = (loaded.vision_hidden_size, loaded.text_hidden_size)
        expected = (config.vision_hidden_size, config.text_hidden_size)
        if found != expected or loaded.num_layers < config.backbone_layers:
            raise ValueError(
                f"the backbone has {loaded.num_layers} layers and features {found[0]} and {found[1]} wide (vision, "
                f"text), the model was built for {config.backbone_layers}, {expected[0]} and {expected[1]}: set "
                "backbone_layers, vision_hidden_size and text_hidden_size, or attach the backbone it was trained with"
            )
        if config.image_grid not in (None, list(loaded.image_grid)):
            raise ValueError(
                f"the backbone gives images of {loaded.image_grid} tokens (rows, columns), the model reads such of "
                f"{tuple(config.image_grid)}: set image_grid, or use the image size and token budget of its training"
            )
        if loaded.num_layers > config.backbone_layers:
            logger.info(
                f"of the backbone's {loaded.num_layers} layers the first {config.backbone_layers} are used: "
                "config.backbone_layers"
            )
        if not shared:
            loaded.truncate(config.taps[-1])  # a module that is shared may serve others, with taps of their own
        loaded.require_taps(config.taps)
        if config.tail == "backbone" and loaded.tail_hidden_size != config.text_hidden_size:
            raise ValueError(
                "tail='backbone' wants a backbone that goes on with further tokens (a generative one): use "
                "tail='transformer' with this one"
            )
        loaded = loaded.to(self.device)
        train_backbone(loaded, config.backbone_training, config.lora)
        if config.backbone_training == "frozen":
            # Past nn.Module's registration: a frozen backbone is neither saved, nor trained, nor cast.
            self.__dict__["_frozen_backbone"] = loaded
        else:
            self._modules[TRAINED[:-1]] = loaded
            if self._trained_at is not None:
                place, hub = self._trained_at
                self.load_trained_tensors(place, **hub)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        with self._trained_backbone_aside():
            super()._apply(fn, recurse)
        if self.backbone is not None:
            self.backbone.to(self.device)  # it follows to a device, and keeps the dtype that it was loaded in
        return self

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """Not of a backbone that words continue from: it keeps keys and values, which recomputing would drop."""
        if self.backbone is None or not self.backbone.language_reads_vision:
            super()._set_gradient_checkpointing(*args, **kwargs)
            return
        with self._trained_backbone_aside():
            super()._set_gradient_checkpointing(*args, **kwargs)

    @contextmanager
    def _trained_backbone_aside(self) -> Iterator[None]:
        """Inside, a backbone that is trained is no submodule."""
        trained = self._modules.pop(TRAINED[:-1], None)
        try:
            yield
        finally:
            if trained is not None:
                self._modules[TRAINED[:-1]] = trained

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        backbone: BackboneSource | None = "auto",
        backbone_quantization: str | None = "auto",
        **kwargs: Any,
    ) -> Any:
        """As every transformers model; `backbone` is "auto" (that of `config.backbone`), a folder, a module or None.

        Of an adapter's folder or Hub id: the model of its base, with the adapter in it.

        `backbone_quantization` is "auto" (as the model was trained with), `int8`, `nf4` or None (none): another than
        that gives other features, and is what the model is trained and saved with from now on.
        """
        from .adapters import load_adapted  # it builds on this module

        if (adapter := adapter_place(pretrained_model_name_or_path, kwargs)) is not None:
            return load_adapted(cls, adapter, backbone=backbone, backbone_quantization=backbone_quantization, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        hub = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
        downloaded = {**hub, "local_files_only": True, "force_download": False}
        model.loaded_commit = commit_of(pretrained_model_name_or_path, **downloaded)
        model.base_embodiments = list(model.config.expert.embodiments)
        if pretrained_model_name_or_path is not None:
            pinned = {**hub, "revision": model.loaded_commit or hub.get("revision")}
            model.loaded_from = (str(lasting_place(pretrained_model_name_or_path)), pinned)
        if model.config.backbone_training != "frozen":
            model._trained_at = (str(pretrained_model_name_or_path), hub)
        if backbone_quantization != "auto" and model.config.backbone is not None:
            model.config.backbone = {**model.config.backbone, "quantization": backbone_quantization}
        if backbone != "auto":
            if backbone is not None:
                model.attach_backbone(backbone)
        elif model.config.backbone is not None:
            model.attach_backbone()
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """As every transformers model; of a backbone goes in what is trained of it, of a model with an adapter that.

        A folder has either weights or an adapter: what was there of the other is removed.
        """
        from .adapters import adapters_in, save_adapter  # it builds on this module

        if adapters_in(self) is not None:
            save_adapter(self, save_directory)
            return
        if self.config.backbone_training != "frozen" and self.backbone is None:
            raise ValueError(
                f"config.backbone_training is {self.config.backbone_training!r} and no backbone is attached: what was "
                "trained of it would be lost, call attach_backbone() first"
            )
        if trained := self.trained_tensors():
            everything = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = {
                name: tensor
                for name, tensor in everything.items()
                if not name.startswith(TRAINED) or name.removeprefix(TRAINED) in trained
            }
            kwargs["save_original_format"] = False  # else tensors are renamed as older releases called the backbone's
        super().save_pretrained(save_directory, **kwargs)
        self.base_embodiments = list(self.config.expert.embodiments)
        if kwargs.get("is_main_process", True):  # an adapter that was there would be found first
            for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE):
                (Path(save_directory) / name).unlink(missing_ok=True)

    def trained_tensors(self) -> dict[str, Tensor]:
        """What of the backbone a checkpoint has: nothing, the adapters, or all of it."""
        backbone = self._modules.get(TRAINED[:-1])
        if backbone is None:
            return {}
        state = backbone.state_dict()
        if self.config.backbone_training == "full":
            return state
        learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in state.items() if name in learning}

    def load_trained_tensors(self, place: str, **hub: Any) -> None:
        """Reads them back out of a checkpoint. Raises ValueError naming a tensor that the checkpoint does not have."""
        wanted = self.trained_tensors()
        for file in weight_files(place, **hub):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118, it is no mapping
                    if name.startswith(TRAINED) and (own := wanted.pop(name.removeprefix(TRAINED), None)) is not None:
                        own.copy_(tensors.get_tensor(name))
        if wanted:
            raise ValueError(
                f"{place}: {next(iter(wanted))!r} of the backbone is missing, although config.backbone_training is "
                f"{self.config.backbone_training!r}: the checkpoint is damaged"
            )


__all__ = ["TRAINED", "BackbonePreTrainedModel", "BackboneSource"]
