"""What the action prior and the VLA have in common: expert, trajectory encoder, flow and initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..configuration.configuration_expert import MotionConfig
from .adding_embodiments import add_embodiment, train_only_embodiment
from .expert import ActionExpert
from .expert_layer import ExpertLayer, LayerPrefix, Modulation
from .flow_draws import FlowDraws, draw_flow, prefix_lengths
from .flow_matching import integrate, interpolate, velocity_loss
from .layers import EmbodimentLinear
from .trajectory_encoder import TrajectoryEncoder

ALIGNMENT = 64  # bytes, of what torch allocates on a CPU


class FlowPrediction(NamedTuple):
    """Velocity and target (B, H, D), the entries (B, H, D) that count, and how much each dim does (B, D)."""

    velocity: Tensor
    target: Tensor
    mask: Tensor
    weights: Tensor | None = None

    def loss(self) -> Tensor:
        """Scalar, see `velocity_loss`."""
        return velocity_loss(*self)


class MotionPreTrainedModel(PreTrainedModel):
    """Base of the models that hold an action expert. Subclasses build on `self.expert` and `self.encoder`."""

    config: MotionConfig
    base_model_prefix = ""
    main_input_name = "actions"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ExpertLayer", "TransformerLayer"]

    def __init__(self, config: MotionConfig) -> None:
        super().__init__(config)
        for name in config.sub_configs:  # the attention of sub-configs' modules follows this model's
            if (sub_config := getattr(config, name)) is not None:
                sub_config._attn_implementation = config._attn_implementation
        self.expert = ActionExpert(config.expert, self._expert_layers(config))
        self.encoder = TrajectoryEncoder(config.encoder, config.expert) if config.encoder is not None else None

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError with `use_reentrant=True`, which loses the gradients of what layers pass on in tuples."""
        function = args[0] if args else kwargs.get("gradient_checkpointing_func")
        if enable and getattr(function, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "gradient checkpointing with use_reentrant=True loses gradients here: leave it out, or set it to False"
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As every transformers model; the weights come to lie where freshly made ones would.

        Where a file's tensors are used in place, their addresses are odd, and matrix products on a CPU round them
        another way: a policy would differ from the prior that it was made of in the seventh digit.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        for parameter in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        return loaded

    def _expert_layers(self, config: Any) -> list[ExpertLayer] | None:
        """The layers of a model whose expert does more than move."""
        return None

    def encode(
        self,
        states: Tensor | None,
        actions: Tensor,
        embodiment_ids: Tensor,
        action_mask: Tensor | None = None,
    ) -> Tensor:
        """Latent z (B, z), unit L2 norm, of a normalised trajectory: `states` (B, H, S), `actions` (B, H, D).

        `action_mask` (B, H, D) bool marks real entries. The window may be a future chunk or a past one (paper A).
        Raises ValueError when the model has no trajectory encoder, or it needs `states` and has none.
        """
        if self.encoder is None:
            raise ValueError(
                "this model has no trajectory encoder (config.encoder is None): load it from an action prior"
            )
        mask = self.real_entries(embodiment_ids, actions.shape[1], action_mask)
        return self.encoder(states, actions, embodiment_ids, mask)

    def real_entries(self, embodiment_ids: Tensor, steps: int, action_mask: Tensor | None = None) -> Tensor:
        """Bool mask (B, steps, D): the embodiment has the dimension, and `action_mask` (B, steps[, D]), if any, agrees.

        Raises ValueError on an embodiment id that the checkpoint does not know.
        """
        self.expert.require_known(embodiment_ids)
        dims = torch.tensor(self.config.expert.action_dims, device=embodiment_ids.device)
        own = torch.arange(self.config.expert.action_dim, device=dims.device) < dims[embodiment_ids][:, None]
        own = own[:, None].expand(-1, steps, -1)
        if action_mask is None:
            return own
        return own & (action_mask[..., None] if action_mask.ndim == 2 else action_mask)

    def predict_velocity(
        self,
        actions: Tensor,
        embodiment_ids: Tensor,
        context: list[LayerPrefix],
        mask: Tensor,
        noise: Tensor,
        timestep: Tensor,
        prefix_length: Tensor | None = None,
    ) -> FlowPrediction:
        """The expert's velocity between `noise` and `actions` (B, H, D) at `timestep` (B,) or (B, H), and its target.

        The first `prefix_length` (B,) steps are shown clean, at tau = 0, and do not count in the loss. With `noise` (B,
        K, H, D), `timestep` (B, K) and `prefix_length` (B, K) each chunk is shown K times, and the prediction's steps
        are K H, one chunk behind the other.
        """
        actions, clean = actions.masked_fill(~mask, 0), None
        steps, shown, draws = actions.shape[1], timestep.reshape(len(timestep), -1), 1
        if noise.dim() == 4:
            draws, noise, shown = noise.shape[1], noise.flatten(1, 2), shown.repeat_interleave(steps, dim=1)
            actions, mask = actions.repeat(1, draws, 1), mask.repeat(1, draws, 1)
        shown, counted = shown.expand(-1, actions.shape[1]), mask
        if prefix_length is not None:
            lengths = prefix_length.reshape(len(actions), -1, 1)
            clean = (torch.arange(steps, device=actions.device) < lengths).flatten(1)
            counted = mask & ~clean[..., None]
            shown = shown.masked_fill(clean, 0.0)
        noisy = interpolate(actions, noise, shown)
        velocity = self.expert(noisy, timestep, embodiment_ids, context, mask, clean, draws)
        return FlowPrediction(velocity, noise - actions, counted)

    def draw(self, batch_size: int, steps: int, generator: torch.Generator | None = None) -> FlowDraws:
        """What chance decides in a training pass over `batch_size` windows of `steps` steps, on the model's device."""
        return draw_flow(self.config, batch_size, steps, self.device, generator)

    def training_prefix(self, mask: Tensor, draws: FlowDraws) -> Tensor | None:
        """How many leading steps of each draw are shown clean in this pass, (B,) or (B, K) as `draws` are.

        `mask` (B, H, D) bool is true where real. None outside of training, or when `prefix_probability` is 0.
        """
        if not self.training or self.config.prefix_probability == 0:
            return None
        valid_steps = mask.any(dim=-1).sum(dim=-1).view(-1, *[1] * (draws.prefix.dim() - 1)).expand_as(draws.prefix)
        assert self.config.max_prefix_length is not None
        return prefix_lengths(draws.prefix, valid_steps, self.config.prefix_probability, self.config.max_prefix_length)

    def draw_noise(self, embodiment_ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise (B, H, D) to sample chunks from, zero beyond each body's own dims.

        Only a body's own entries are drawn, so that a wider robot that is added later changes no chunk of a seed. It is
        drawn on the generator's device (without one: on the CPU), so that a seed means one chunk on every machine.
        """
        own = self.real_entries(embodiment_ids, self.config.expert.chunk_size)
        source = generator.device if generator is not None else torch.device("cpu")
        own = own.to(source)
        values = torch.randn(int(own.sum()), device=source, generator=generator)
        noise = torch.zeros(own.shape, device=source).masked_scatter(own, values)
        return noise.to(embodiment_ids.device)

    def add_embodiment(self, name: str, action_dim: int, state_dim: int, *, like: str | None = None) -> int:
        """Gives the model a new body: soft tokens and projections of its own, and an entry in the config.

        Every output for the old bodies stays the same to the bit, also after the new one was trained alone
        (`train_only_embodiment`). When it is wider than all others, actions and states are padded to its width.

        Args:
            name: not yet among the config's embodiments. action_dim, state_dim: of the numbers that the model sees.
            like: a body whose soft tokens, and whose projections where the widths agree, the new one starts from;
                without it they start at random.

        Returns:
            The new body's id; the processor needs its `Embodiment` at that place.

        Raises:
            ValueError: on a name that exists, a `like` that does not, or impossible dims. The model is then unchanged.
        """
        return add_embodiment(self, name, action_dim, state_dim, like)

    def train_only_embodiment(self, *names: str) -> None:
        """Freezes all but the soft tokens and projections of the named bodies. Raises ValueError on an unknown name."""
        train_only_embodiment(self, *names)

    def give_every_embodiment_a_gradient(self) -> None:
        """From now on a body that is not in a batch has gradients of zero instead of none, as FSDP needs it."""
        for module in self.modules():
            if isinstance(module, EmbodimentLinear):
                module.every_gradient = True

    def generate(
        self,
        embodiment_ids: Tensor,
        context: list[LayerPrefix] | Callable[[], list[LayerPrefix]],
        *,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        prefix_actions: Tensor | None = None,
        prefix_length: Tensor | None = None,
        action_mask: Tensor | None = None,
        scheduler: dict[str, Any] | None = None,
    ) -> Tensor:
        """Integrates a chunk (B, H, D) from noise with the expert's velocity; entries that are not real are zero.

        `context` does not change while a chunk is made; a function that gives it is called for every evaluation.
        Noise is drawn on the generator's device (without one, on the CPU) and moved, so that a seed means one chunk.
        """
        expert = self.config.expert
        shape = (len(embodiment_ids), expert.chunk_size, expert.action_dim)
        if noise is None:
            noise = self.draw_noise(embodiment_ids, generator)
        elif noise.shape != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this model draws chunks of shape {shape}")
        mask = self.real_entries(embodiment_ids, expert.chunk_size, action_mask)
        prefixes = context if callable(context) else lambda: context
        actions = integrate(
            lambda x, tau, clean: self.expert(x, tau, embodiment_ids, prefixes(), mask, clean),
            noise.to(embodiment_ids.device),
            scheduler=scheduler or self.config.scheduler,
            num_inference_steps=self.config.num_inference_steps if num_inference_steps is None else num_inference_steps,
            prefix_actions=prefix_actions,
            prefix_length=prefix_length,
        )
        return actions.masked_fill(~mask, 0)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # LeCun-normal maps keep the small widths used here at unit scale; embeddings start small, as in Llama.
        # Newer transformers visit only modules with parameters of their own, so the rule is about those.
        if isinstance(module, Modulation):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=max(module.in_features, 1) ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        else:
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, std=0.02)


__all__ = ["FlowPrediction", "MotionPreTrainedModel"]
