"""Rung 3: a vision-language-action model whose action expert may have learned to move before it saw anything."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..configuration.configuration_action_prior import ActionPriorConfig
from ..configuration.configuration_expert import MotionConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from .backbone import DualEncoderBackbone, LanguageFeatures, VisionFeatures, load_backbone
from .flow_draws import FlowDraws
from .fusion import FusionTransformer
from .modeling_action_prior import ActionPriorModel
from .motion_model import MotionPreTrainedModel
from .transfer import TransferReport, transfer_parameters

BackboneSource = str | os.PathLike[str] | nn.Module


@dataclass
class PriorVLAOutput(ModelOutput):
    """`loss` scalar and its parts `losses` (pred, and while distilling align and recon); `velocity` (B, H, D) of the
    history-free pass; `latent` z' (B, z)."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    velocity: Tensor | None = None
    latent: Tensor | None = None


class PriorVLAModel(MotionPreTrainedModel):
    """Images, instruction and state in, chunks of actions out (paper A, Stage 2: `fusion="latent"`).

    The frozen backbone is not part of the weights: `from_pretrained` attaches the one that `config.backbone` refers to,
    or the one given as `backbone=` (a folder, a module, or None to leave it off and pass features instead).
    """

    config: PriorVLAConfig
    config_class = PriorVLAConfig

    def __init__(self, config: PriorVLAConfig) -> None:
        super().__init__(config)
        self.fusion = FusionTransformer(config)
        self.transfer_report: TransferReport | None = None
        self._hold_backbone(None)
        self.post_init()

    # --- the backbone, attached and not owned -------------------------------------------------------------------------

    @property
    def backbone(self) -> DualEncoderBackbone | None:
        """The frozen backbone, or None when it was left off."""
        return self.__dict__["_frozen_backbone"]

    def attach_backbone(self, backbone: BackboneSource | None = None) -> Self:
        """Loads and holds the backbone of `config.backbone`, or that of a folder or module given instead.

        Raises ValueError when its weights are not those that `config.backbone["sha256"]` names.
        """
        loaded = load_backbone(self.config.backbone, backbone)
        found = (loaded.vision_hidden_size, loaded.text_hidden_size)
        expected = (self.config.vision_hidden_size, self.config.text_hidden_size)
        if found != expected:
            raise ValueError(
                f"the backbone's features are {found} wide (vision, text), the model was built for {expected}: "
                "set vision_hidden_size and text_hidden_size, or attach the backbone it was trained with"
            )
        self._hold_backbone(loaded.to(self.device))
        return self

    def _hold_backbone(self, backbone: DualEncoderBackbone | None) -> None:
        # Past nn.Module's registration: a frozen backbone is neither saved, nor trained, nor cast.
        self.__dict__["_frozen_backbone"] = backbone

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.backbone is not None:
            self.backbone.to(self.device)  # it follows to a device, and keeps the dtype that it was loaded in
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        backbone: BackboneSource | None = "auto",
        **kwargs: Any,
    ) -> Any:
        """As every transformers model; `backbone` is "auto" (that of `config.backbone`), a folder, a module or None."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if backbone != "auto":
            if backbone is not None:
                model.attach_backbone(backbone)
        elif model.config.backbone is not None:
            model.attach_backbone()
        return loaded

    @classmethod
    def from_action_prior(
        cls,
        prior: ActionPriorModel | str | os.PathLike[str],
        config: PriorVLAConfig | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A VLA whose expert and trajectory encoder are the prior's; the rest is freshly initialised.

        Args:
            prior: a model, or the folder or Hub id of one.
            config: what is not the prior's (fusion, backbone, ...); its expert and encoder must be left as they are by
                default, or be the prior's. Default: `PriorVLAConfig()`.
            config_overrides: fields of `PriorVLAConfig`, over `config`. Without it, a field that both configs have
                (times, scheduler, inference steps) is the prior's.

        Returns:
            The model, its `TransferReport` in `.transfer_report`.
        """
        name = (
            str(prior)
            if not isinstance(prior, nn.Module)
            else (prior.config._name_or_path or "an action prior in memory")
        )
        if not isinstance(prior, nn.Module):
            prior = ActionPriorModel.from_pretrained(prior)
        if clash := {"expert", "encoder"} & set(config_overrides):
            raise ValueError(f"{min(clash)} cannot be given: a policy from a prior has the prior's own")
        base = config.to_dict() if config is not None else {}
        model = cls(PriorVLAConfig.from_dict({**base, **inherited_fields(prior.config), **config_overrides}))
        model.transfer_report = transfer_parameters(prior, model, name)
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
    ) -> tuple[VisionFeatures, LanguageFeatures]:
        """Backbone features of images (B, C, 3, h, w) and text (B, L); features that are given are not computed again.

        Raises ValueError when something would have to be encoded and no backbone is attached, or an input is missing.
        """
        if vision_features is not None and language_features is not None:
            return vision_features, language_features
        if self.backbone is None:
            raise ValueError(
                "no backbone is attached to encode images and text: load with from_pretrained(..., backbone=folder), "
                "call attach_backbone(), or pass vision_features and language_features"
            )
        if vision_features is None:
            if pixel_values is None:
                raise ValueError("pass pixel_values (B, C, 3, h, w) or vision_features")
            vision_features = self.backbone.encode_vision(pixel_values, pixel_attention_mask)
        if language_features is None:
            if input_ids is None:
                raise ValueError("pass input_ids (B, L) or language_features")
            language_features = self.backbone.encode_language(vision_features, input_ids, attention_mask)
        return vision_features, language_features

    def predict_latent(
        self,
        vision_features: VisionFeatures,
        language_features: LanguageFeatures,
        state: Tensor,
        embodiment_ids: Tensor,
        history_states: Tensor | None = None,
        history_actions: Tensor | None = None,
        history_mask: Tensor | None = None,
    ) -> Tensor:
        """z' (B, z), unit L2 norm, at the query token; with the history's token when `history_actions` is given."""
        history = has_history = None
        if history_actions is not None and self.config.use_history:
            history = self.encode(history_states, history_actions, embodiment_ids, history_mask)
            if history_mask is not None:
                has_history = history_mask.flatten(1).any(dim=1)
        return self.fusion(vision_features, language_features, state, embodiment_ids, history, has_history)

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
        noise: Tensor | None = None,
        timestep: Tensor | None = None,
        prefix_length: Tensor | None = None,
        draws: FlowDraws | None = None,
        generator: torch.Generator | None = None,
        **observation: Any,
    ) -> PriorVLAOutput:
        """L_pred + distillation_weight (L_align + L_recon), paper A's Stage 2.

        Args:
            actions (B, H, D), action_mask (B, H, D), states (B, H, S) of the same steps, state (B, S) now, all
                normalised; history_* (B, H_hist, ·): the past window.
            distillation_weight: lambda(k). At 0 the trajectory encoder is not run on the future, and `states` not read.
            noise, timestep, prefix_length, draws, generator: as in `ActionPriorModel.forward`.
            observation: arguments of `encode_observation`.

        With `use_history` and a history given, L_pred and L_align are averaged over a pass with it and one without, so
        that the policy cannot lean on copying its past. Noise and times are shared by all terms (our choice: less
        variance between them). L_recon is told z as it is, without Stage 1's noise (our choice: here the expert also
        follows z', whose error is noise enough).
        """
        vision, language = self.encode_observation(**observation)
        latents = [self.predict_latent(vision, language, state, embodiment_ids)]
        if self.config.use_history and history_actions is not None:
            past = (history_states, history_actions, history_mask)
            latents.append(self.predict_latent(vision, language, state, embodiment_ids, *past))
        shown = list(latents)
        if distillation_weight > 0:
            target = self.encode(states, actions, embodiment_ids, action_mask)
            shown.append(target)
        if draws is None:
            draws = self.draw(len(actions), actions.shape[1], generator)
        flow_losses, velocity = self._flow_losses(
            shown, actions, state, embodiment_ids, action_mask, noise, timestep, prefix_length, draws
        )
        losses = {"pred": torch.stack(flow_losses[: len(latents)]).mean()}
        loss = losses["pred"]
        if distillation_weight > 0:
            losses["align"] = torch.stack([alignment_loss(latent, target) for latent in latents]).mean()
            losses["recon"] = flow_losses[-1]
            loss = loss + distillation_weight * (losses["align"] + losses["recon"])
        return PriorVLAOutput(loss=loss, losses=losses, velocity=velocity, latent=latents[0])

    def _flow_losses(
        self,
        latents: list[Tensor],
        actions: Tensor,
        state: Tensor,
        embodiment_ids: Tensor,
        action_mask: Tensor | None,
        noise: Tensor | None,
        timestep: Tensor | None,
        prefix_length: Tensor | None,
        draws: FlowDraws,
    ) -> tuple[list[Tensor], Tensor]:
        """The flow loss under each of `latents`, in one pass of the expert, and the first one's velocity."""
        copies = len(latents)
        noise = draws.noise if noise is None else noise
        timestep = draws.timestep if timestep is None else timestep
        mask = self.real_entries(embodiment_ids, actions.shape[1], action_mask)
        if prefix_length is None:
            prefix_length = self.training_prefix(mask, draws)
        ids = embodiment_ids.repeat(copies)
        context = self.expert.encode_context(ids, torch.cat(latents), state=state.repeat(copies, 1))
        flow = self.predict_velocity(
            actions.repeat(copies, 1, 1),
            ids,
            context,
            mask.repeat(copies, 1, 1),
            noise.repeat(copies, 1, 1),
            timestep.repeat(copies, *[1] * (timestep.dim() - 1)),
            None if prefix_length is None else prefix_length.repeat(copies),
        )
        parts = [type(flow)(*part) for part in zip(*(tensor.chunk(copies) for tensor in flow), strict=True)]
        return [part.loss() for part in parts], parts[0].velocity

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
        **sampling: Any,
    ) -> Tensor:
        """Normalised chunks (B, H, D), float32, for what is seen, heard and felt now.

        Everything up to z' is computed once a chunk; only the expert runs at every denoising step. `sampling` takes
        `num_inference_steps`, `noise`, `generator`, `prefix_actions`, `prefix_length`, `action_mask` and `scheduler` as
        in `ActionPriorModel.sample_actions`.
        """
        vision, language = self.encode_observation(
            pixel_values, pixel_attention_mask, input_ids, attention_mask, vision_features, language_features
        )
        past = (history_states, history_actions, history_mask)
        latent = self.predict_latent(vision, language, state, embodiment_ids, *past)
        context = self.expert.encode_context(embodiment_ids, latent, state=state)
        return self.generate(embodiment_ids, context, **sampling)


def inherited_fields(prior: ActionPriorConfig) -> dict[str, Any]:
    """What a VLA's config takes from the prior's: expert, encoder and flow, so that shapes cannot disagree."""
    names = {field.name for field in fields(MotionConfig)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: value for name, value in prior.to_dict().items() if name in names}


def alignment_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """||z' - stopgrad(z)||^2 summed over latent dims, mean over windows; both (B, z) of unit norm (paper A)."""
    return (predicted - target.detach()).square().sum(dim=-1).mean()


__all__ = ["PriorVLAModel", "PriorVLAOutput"]
