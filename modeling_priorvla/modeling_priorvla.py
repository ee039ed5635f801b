"""Rungs 2 and 3: an action expert that may have learned to move before it saw, and to see before it heard."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from ..configuration.configuration_action_prior import ActionPriorConfig
from ..configuration.configuration_expert import EncoderConfig, MotionConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from ..configuration.expert_layout import Insertion, inserted_layout
from .attached_backbone import BackbonePreTrainedModel
from .backbone import LanguageFeatures, VisionFeatures
from .expert_layer import ExpertLayer, LayerPrefix
from .flow_draws import FlowDraws
from .fusion import FusionTransformer, QueryTail
from .hosts import Gate, HostMemory, SeeingLayer, Sight, host_layers
from .modeling_action_prior import ActionPriorModel
from .motion_model import FlowPrediction
from .transfer import TransferReport, copy_created, transfer_parameters

logger = logging.get_logger(__name__)

# Of a vision-action prior's config: what a policy that is made from it cannot change.
SHAPE = {"expert", "encoder", "fusion", "language", "gate", "use_latent", "fusion_transformer", "tail"}
SHAPE |= {
    "use_history",
    "history_size",
    "num_cameras",
    "backbone_layers",
    "vision_hidden_size",
    "text_hidden_size",
    "image_grid",
    "normalize_features",
}

Past = tuple[Tensor | None, Tensor | None, Tensor | None]  # states, actions, mask


@dataclass
class PriorVLAOutput(ModelOutput):
    """`loss` scalar and its parts `losses` (pred, and while distilling align and recon); `velocity` (B, H, D) of the
    history-free pass; `latent` z' (B, z), None where the host has none."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    velocity: Tensor | None = None
    latent: Tensor | None = None


class PriorVLAModel(BackbonePreTrainedModel):
    """Images, instruction and state in, chunks of actions out; with `language=False`, a vision-action prior (rung 2).

    `config.fusion` says how the expert is told what the backbone sees; see `hosts` and `PriorVLAConfig`.
    """

    config: PriorVLAConfig
    config_class = PriorVLAConfig
    _no_split_modules = ["ExpertLayer", "TransformerLayer", "CrossLayer", "JointLayer", "GatedLayer"]

    def __init__(self, config: PriorVLAConfig) -> None:
        super().__init__(config)
        self.fusion: FusionTransformer | QueryTail | None = None
        if config.predicts_latent:
            self.fusion = QueryTail(config) if config.tail == "backbone" else FusionTransformer(config)
        self.memory = HostMemory(config) if config.fusion != "latent" else None
        self.transfer_report: TransferReport | None = None
        self.post_init()

    def _expert_layers(self, config: PriorVLAConfig) -> list[ExpertLayer]:
        return host_layers(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Gate):
            init.constant_(module.weight, module.born)
        else:
            super()._init_weights(module)

    def gate_values(self) -> dict[str, float]:
        """How far every gate of the host is open: mean size of what its branch is multiplied by, by the gate's name."""
        values = {}
        for name, gate in self.named_modules():
            if isinstance(gate, Gate):
                amount = gate.amount().detach()
                whole = amount.full_tensor() if isinstance(amount, DTensor) else amount  # of shards, on every process
                values[name.removeprefix("expert.")] = whole.abs().mean().item()
        return values

    # --- from a prior -------------------------------------------------------------------------------------------------

    @classmethod
    def from_action_prior(
        cls,
        prior: ActionPriorModel | str | os.PathLike[str],
        config: PriorVLAConfig | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A VLA, or with `language=False` a vision-action prior, whose expert is the prior's; the rest is fresh.

        In every host the new model first moves as the prior's decoder does when it is told nothing (gates of the form
        `zero`; with a z', as when it is told z'). The prior's trajectory encoder comes along where something uses it:
        distillation of z', or history.

        Args:
            prior: a model, or the folder or Hub id of one.
            config: what is not the prior's (fusion, backbone, ...); its expert and encoder must be left as they are by
                default, or be the prior's. Default: `PriorVLAConfig()`.
            config_overrides: fields of `PriorVLAConfig`, over `config`. Without it, a field that both configs have
                (times, scheduler, inference steps) is the prior's.

        Returns:
            The model, in the prior's dtype and on its device, its `TransferReport` in `.transfer_report`.

        Raises:
            ValueError: `prior` is no action prior, or its expert or encoder is given otherwise than it is.
        """
        name = _name_of(prior, "an action prior in memory")
        its_config = prior.config if isinstance(prior, nn.Module) else ActionPriorConfig.get_config_dict(prior)[0]
        _require_action_prior(its_config, name)
        moving: ActionPriorModel = prior if isinstance(prior, nn.Module) else ActionPriorModel.from_pretrained(prior)
        if clash := {"expert", "encoder"} & set(config_overrides):
            raise ValueError(f"{min(clash)} cannot be given: a policy from a prior has the prior's own")
        base = config.to_dict() if config is not None else {}
        inherited = inherited_fields(moving.config, {**base, **config_overrides})
        result = PriorVLAConfig.from_dict({**base, **inherited, **config_overrides})
        if config is not None:
            _require_its_own(config, result, moving.config)
        model = cls(result)
        model = model.to(device=moving.device, dtype=moving.dtype)  # type: ignore[call-arg]
        model.transfer_report = transfer_parameters(moving, model, name)
        for layer in model.expert.layers:
            if isinstance(layer, SeeingLayer):
                layer.start_blind()
        return model

    @classmethod
    def from_vision_action_prior(
        cls,
        prior: PriorVLAModel | str | os.PathLike[str],
        *,
        insertion: Insertion = "after",
        **config_overrides: Any,
    ) -> Self:
        """A VLA that begins as the vision-action prior it comes from, to the bit, and can learn to listen (paper B).

        New layers that read the instruction stand `before` or `after` each inherited one; those keep their taps and
        never read it. A new layer begins as a copy of the inherited one beside it, so that it need not learn to see
        again (our choice, measured in docs/language.md; how the paper's begin we do not know), and with gates of the
        form `zero` without any effect. With insertion "token" there are none, and the inherited layers read the
        instruction at once (paper B's ablation, which changes the output).

        Args:
            prior: a model with `language=False`, or the folder or Hub id of one.
            insertion: see above. Our choice for the default: the paper names both.
            config_overrides: fields of `PriorVLAConfig` that are not the prior's shape (`backbone_training`, ...).

        Returns:
            The model, in the prior's dtype and on its device, its `TransferReport` in `.transfer_report`. A backbone
            that is attached to the prior, stays frozen and has every layer that is tapped is shared; otherwise call
            `attach_backbone()`.

        Raises:
            ValueError: the model is no vision-action prior, or a field is given that is the prior's.
        """
        name = _name_of(prior, "a vision-action prior in memory")
        seeing: PriorVLAModel = prior if isinstance(prior, nn.Module) else cls.from_pretrained(prior, backbone=None)
        own = seeing.config
        if own.language:
            raise ValueError(f"{name} already reads instructions (config.language is True): train it on as it is")
        if clash := sorted(SHAPE & set(config_overrides)):
            raise ValueError(f"{clash[0]} cannot be given: a policy from a vision-action prior has the prior's own")
        layout, places = inserted_layout(own.fusion, own.expert.tap_layers, own.backbone_layers, insertion)
        expert = {**own.expert.to_dict(), **layout}
        model = cls(PriorVLAConfig.from_dict({**own.to_dict(), **config_overrides, "expert": expert, "language": True}))
        model.config._name_or_path = ""  # it is no checkpoint yet: an adapter would take the prior for its base
        model = model.to(device=seeing.device, dtype=seeing.dtype)  # type: ignore[call-arg]

        def rename(tensor: str) -> str:
            parts = tensor.split(".")
            if parts[:2] == ["expert", "layers"]:
                parts[2] = str(places[int(parts[2])])
            return ".".join(parts)

        model.transfer_report = transfer_parameters(seeing, model, name, rename)
        layers, beside = cast(list[SeeingLayer], model.expert.layers), {}
        inserted = [index for index in range(len(layers)) if index not in places]
        for index in inserted:
            neighbour = index - 1 if insertion == "after" else index + 1
            beside[f"expert.layers.{index}."] = f"expert.layers.{neighbour}."
            for part in ("vision_proj", "vision_norm"):
                beside[f"memory.{part}.{layers[index].tap}."] = f"memory.{part}.{layers[neighbour].tap}."
        copy_created(model, model.transfer_report, beside)
        for index in inserted:
            layers[index].start_absent()
        shared = seeing.backbone if model.config.backbone_training == "frozen" else None
        if shared is not None and shared.last_layer >= model.config.taps[-1]:
            model.attach_backbone(shared)
        elif shared is not None:
            logger.warning(
                f"the backbone of {name} was cut behind layer {shared.last_layer}, and the policy reads layer "
                f"{model.config.taps[-1]}: it has no backbone yet, call attach_backbone()"
            )
        return model

    # --- what it sees and hears ---------------------------------------------------------------------------------------

    def encode_observation(
        self,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_features: VisionFeatures | None = None,
        language_features: LanguageFeatures | None = None,
    ) -> tuple[VisionFeatures, LanguageFeatures | None]:
        """Backbone features of images (B, C, 3, h, w) and text (B, L); features that are given are not computed again.

        A vision-action prior has no language features, whatever it is given: it does not look at the text.

        Raises ValueError when something would have to be encoded and no backbone is attached, or an input is missing.
        """
        heard = self.config.language
        if vision_features is not None and (language_features is not None or not heard):
            return vision_features, language_features if heard else None
        if self.backbone is None:
            raise ValueError(
                "no backbone is attached to encode images and text: load with from_pretrained(..., backbone=folder), "
                "call attach_backbone(), or pass vision_features and language_features"
            )
        if vision_features is None:
            if pixel_values is None:
                raise ValueError("pass pixel_values (B, C, 3, h, w) or vision_features")
            vision_features = self.backbone.encode_vision(pixel_values, pixel_attention_mask, self.config.taps)
        if not heard:
            return vision_features, None
        if language_features is None:
            if input_ids is None:
                raise ValueError("pass input_ids (B, L) or language_features")
            language_features = self.backbone.encode_language(
                vision_features, input_ids, attention_mask, self.config.taps
            )
        return vision_features, language_features

    def predict_latent(
        self,
        vision_features: VisionFeatures,
        language_features: LanguageFeatures | None,
        state: Tensor,
        embodiment_ids: Tensor,
        history_states: Tensor | None = None,
        history_actions: Tensor | None = None,
        history_mask: Tensor | None = None,
    ) -> Tensor:
        """z' (B, z), unit L2 norm, at the query token; with the history's token when `history_actions` is given.

        Raises ValueError when the host has no query token (`config.predicts_latent`).
        """
        if self.fusion is None:
            raise ValueError(f"fusion={self.config.fusion!r} predicts no latent: build the model with use_latent=True")
        assert language_features is not None  # what predicts a latent reads language
        past = self._encode_past(embodiment_ids, (history_states, history_actions, history_mask))
        if isinstance(self.fusion, QueryTail):
            assert self.backbone is not None
            return self.fusion(self.backbone, language_features, state, embodiment_ids, *past)
        return self.fusion(vision_features, language_features, state, embodiment_ids, *past)

    def look(
        self,
        vision_features: VisionFeatures,
        language_features: LanguageFeatures | None,
        state: Tensor,
        embodiment_ids: Tensor,
        past: Past = (None, None, None),
    ) -> Sight | None:
        """What the expert's layers see; None where they see nothing (`fusion="latent"`)."""
        if self.memory is None:
            return None
        history = (None, None) if self.config.predicts_latent else self._encode_past(embodiment_ids, past)
        return self.memory(vision_features, language_features, state, embodiment_ids, *history)

    def _encode_past(self, embodiment_ids: Tensor, past: Past) -> tuple[Tensor | None, Tensor | None]:
        """The history's token (B, z), and which rows have a past (B,); None where there is no history."""
        states, actions, mask = past
        if actions is None or not self.config.use_history:
            return None, None
        has_history = None if mask is None else mask.flatten(1).any(dim=1)
        return self.encode(states, actions, embodiment_ids, mask), has_history

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        actions: Tensor,
        state: Tensor,
        embodiment_ids: Tensor,
        action_mask: Tensor | None = None,
        states: Tensor | None = None,
        history_states: Tensor | None = None,
        history_actions: Tensor | None = None,
        history_mask: Tensor | None = None,
        distillation_weight: float = 0.0,
        loss_weights: Tensor | None = None,
        noise: Tensor | None = None,
        timestep: Tensor | None = None,
        prefix_length: Tensor | None = None,
        draws: FlowDraws | None = None,
        generator: torch.Generator | None = None,
        **observation: Any,
    ) -> PriorVLAOutput:
        """L_pred + distillation_weight (L_align + L_recon), paper A's Stage 2; without z', L_pred alone (paper B).

        Args:
            actions (B, H, D), action_mask (B, H, D), states (B, H, S) of the same steps, state (B, S) now, all
                normalised; history_* (B, H_hist, ·): the past window.
            distillation_weight: lambda(k). At 0 the trajectory encoder is not run on the future, and `states` not read.
            loss_weights: (E, D) of every embodiment's dims in the flow losses; see `component_weights`.
            noise, timestep, prefix_length, draws, generator: as in `ActionPriorModel.forward`. `draws` may be of K B
                windows: then each is shown under K noises, row after row, and what is seen and heard is computed once
                for all of them. The output's velocity is (B, K H, D) then.
            observation: arguments of `encode_observation`.

        With `use_history` and a history given, L_pred and L_align are averaged over a pass with it and one without, so
        that the policy cannot lean on copying its past. Noise and times are shared by all terms (our choice: less
        variance between them). L_recon is told z as it is, without Stage 1's noise (our choice: here the expert also
        follows z', whose error is noise enough).
        """
        vision, language = self.encode_observation(**observation)
        passes: list[Past] = [(None, None, None)]
        if self.config.use_history and history_actions is not None:
            passes.append((history_states, history_actions, history_mask))
        latents: list[Tensor] = []
        if self.config.predicts_latent:
            latents = [self.predict_latent(vision, language, state, embodiment_ids, *past) for past in passes]
        shown = list(latents)
        if self.config.stop_gradient_into_backbone:
            vision, language = _insulated(vision), _insulated(language)
            if self.config.tail == "backbone":
                shown = [latent.detach() for latent in latents]
            elif latents:
                shown = [self.predict_latent(vision, language, state, embodiment_ids, *past) for past in passes]
        sight = self.look(vision, language, state, embodiment_ids, passes[-1])
        with_history = [past is not passes[0] for past in passes]
        if distillation_weight > 0:
            if not latents:
                raise ValueError(
                    f"distillation_weight={distillation_weight}: fusion={self.config.fusion!r} has no z' to align with "
                    "the prior's latent: set it to 0, or build the model with use_latent=True"
                )
            target = self.encode(states, actions, embodiment_ids, action_mask)
            shown.append(target)
            with_history.append(False)
        draws = draws or self.draw(len(actions), actions.shape[1], generator)
        context = self.expert.encode_context(
            embodiment_ids.repeat(len(with_history)),
            torch.cat(shown) if shown else None,
            state=state.repeat(len(with_history), 1),
            sight=sight and sight.repeat(with_history),
        )
        flows = self._flows(
            len(with_history),
            context,
            actions,
            embodiment_ids,
            action_mask,
            noise,
            timestep,
            prefix_length,
            draws,
            loss_weights,
        )
        flow_losses = [flow.loss() for flow in flows]
        losses = {"pred": torch.stack(flow_losses[: len(passes)]).mean()}
        loss = losses["pred"]
        if distillation_weight > 0:
            losses["align"] = torch.stack([alignment_loss(latent, target) for latent in latents]).mean()
            losses["recon"] = flow_losses[-1]
            loss = loss + distillation_weight * (losses["align"] + losses["recon"])
        return PriorVLAOutput(
            loss=loss, losses=losses, velocity=flows[0].velocity, latent=latents[0] if latents else None
        )

    def _flows(
        self,
        copies: int,
        context: list[LayerPrefix],
        actions: Tensor,
        embodiment_ids: Tensor,
        action_mask: Tensor | None,
        noise: Tensor | None,
        timestep: Tensor | None,
        prefix_length: Tensor | None,
        draws: FlowDraws,
        loss_weights: Tensor | None,
    ) -> list[FlowPrediction]:
        """The flow of as many `copies` of a batch as `context` is of, in one pass of the expert."""
        mask = self.real_entries(embodiment_ids, actions.shape[1], action_mask)
        draws = draws.by_window(len(actions))
        noise = draws.noise if noise is None else noise
        timestep = draws.timestep if timestep is None else timestep
        if prefix_length is None:
            prefix_length = self.training_prefix(mask, draws)
        flow = self.predict_velocity(
            actions.repeat(copies, 1, 1),
            embodiment_ids.repeat(copies),
            context,
            mask.repeat(copies, 1, 1),
            noise.repeat(copies, *[1] * (noise.dim() - 1)),
            timestep.repeat(copies, *[1] * (timestep.dim() - 1)),
            None if prefix_length is None else prefix_length.repeat(copies, *[1] * (prefix_length.dim() - 1)),
        )
        weights = None if loss_weights is None else loss_weights[embodiment_ids]
        parts = zip(*(tensor.chunk(copies) for tensor in (flow.velocity, flow.target, flow.mask)), strict=True)
        return [FlowPrediction(velocity, target, own, weights) for velocity, target, own in parts]

    # --- acting -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_actions(
        self,
        *,
        state: Tensor,
        embodiment_ids: Tensor,
        history_states: Tensor | None = None,
        history_actions: Tensor | None = None,
        history_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_features: VisionFeatures | None = None,
        language_features: LanguageFeatures | None = None,
        use_cache: bool = True,
        **sampling: Any,
    ) -> Tensor:
        """Normalised chunks (B, H, D), float32, for what is seen, heard and felt now.

        Nothing that is seen or heard knows time or actions, so that all of it, down to every layer's keys and values,
        is computed once a chunk; only the action tokens run at every denoising step. `use_cache=False` computes it
        again for every step, to the same result, to measure what that saves. `sampling` takes `num_inference_steps`,
        `noise`, `generator`, `prefix_actions`, `prefix_length`, `action_mask` and `scheduler` as in
        `ActionPriorModel.sample_actions`.
        """
        past = (history_states, history_actions, history_mask)

        def context() -> list[LayerPrefix]:
            vision, language = self.encode_observation(
                pixel_values, pixel_attention_mask, input_ids, attention_mask, vision_features, language_features
            )
            latent = None
            if self.config.predicts_latent:
                latent = self.predict_latent(vision, language, state, embodiment_ids, *past)
            sight = self.look(vision, language, state, embodiment_ids, past)
            return self.expert.encode_context(embodiment_ids, latent, state=state, sight=sight)

        return self.generate(embodiment_ids, context() if use_cache else context, **sampling)


def inherited_fields(prior: ActionPriorConfig, given: dict[str, Any]) -> dict[str, Any]:
    """What a policy takes from a prior's config: expert, encoder and flow, so that shapes cannot disagree.

    The trajectory encoder is left out where neither z' nor history, by the other fields `given`, needs it.
    """
    names = {field.name for field in fields(MotionConfig)} - {field.name for field in fields(PreTrainedConfig)}
    inherited = {name: value for name, value in prior.to_dict().items() if name in names}
    if given.get("fusion", "latent") != "latent" and not given.get("use_latent") and not given.get("use_history"):
        inherited["encoder"] = None
    return inherited


def alignment_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """||z' - stopgrad(z)||^2 summed over latent dims, mean over windows; both (B, z) of unit norm (paper A)."""
    return (predicted - target.detach()).square().sum(dim=-1).mean()


def _insulated(features: Any) -> Any:
    """Features through which no gradient goes back."""
    return features and replace(features, hidden_states=features.hidden_states.detach())


def _require_action_prior(config: PreTrainedConfig | dict[str, Any], name: str) -> None:
    kind = config["model_type"] if isinstance(config, dict) else config.model_type
    if kind != ActionPriorConfig.model_type:
        raise ValueError(f"{name} is no action prior: its config says model_type {kind!r}")


def _require_its_own(given: PriorVLAConfig, result: PriorVLAConfig, prior: ActionPriorConfig) -> None:
    """Raises ValueError where a config that is `given` has another expert or encoder than by default or the prior."""
    usual = {"expert": PriorVLAConfig.from_dict({**given.to_dict(), "expert": None}).expert, "encoder": EncoderConfig()}
    for part, default in usual.items():
        own, *known = (getattr(config, part) for config in (given, result, prior))
        if own is not None and own.to_dict() not in [each.to_dict() for each in (default, *known) if each is not None]:
            raise ValueError(
                f"config.{part} is neither the prior's nor as it is by default: leave it out, a policy from a prior "
                "has the prior's own"
            )


def _name_of(prior: PreTrainedModel | str | os.PathLike[str], otherwise: str) -> str:
    return (prior.config._name_or_path or otherwise) if isinstance(prior, nn.Module) else str(prior)


__all__ = ["PriorVLAModel", "PriorVLAOutput"]
