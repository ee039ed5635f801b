"""What a policy may start from, and what may be said beside it: everything else is refused and nothing is overruled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.training.data.trajectory_dataset import expert_dims


@pytest.fixture
def prior(bodies: list, tiny_fields: dict[str, Any]) -> ActionPriorModel:
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(bodies)}
    return ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"])).eval()


def test_a_policy_is_no_action_prior_in_memory_or_in_a_folder(
    bodies: list, save_policy: Callable, tmp_path: Path
) -> None:
    folder = save_policy(tmp_path / "policy", bodies, fusion="latent")
    for given in (folder, PriorVLAModel.from_pretrained(folder, backbone=None)):
        with pytest.raises(ValueError, match="is no action prior: its config says model_type 'priorvla'"):
            PriorVLAModel.from_action_prior(given, fusion="cross", use_history=True)


def test_a_config_beside_a_prior_may_have_the_usual_expert_or_the_priors_and_no_other(
    prior: ActionPriorModel, tiny_fields: dict[str, Any]
) -> None:
    usual = PriorVLAModel.from_action_prior(prior, PriorVLAConfig(fusion="cross", num_cameras=2)).config
    assert usual.num_cameras == 2 and usual.expert.hidden_size == 16
    own = prior.config.to_dict()
    same = PriorVLAConfig(fusion="cross", num_cameras=2, expert=own["expert"], encoder=own["encoder"])
    assert PriorVLAModel.from_action_prior(prior, same).config.to_dict() == usual.to_dict()
    for part, fields in (
        ("expert", {"hidden_size": 64}),
        ("expert", {**own["expert"], "expert_layers": ["vision_language"] * 4, "tap_layers": [12] * 4}),
        ("encoder", {**own["encoder"], "num_hidden_layers": 2}),
    ):
        config = PriorVLAConfig(fusion="cross", use_history=True, **{"encoder": own["encoder"], part: fields})
        with pytest.raises(ValueError, match=f"config.{part} is neither the prior's nor as it is by default"):
            PriorVLAModel.from_action_prior(prior, config)


def test_no_step_is_not_the_usual_number_of_steps(prior: ActionPriorModel) -> None:
    ids = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="num_inference_steps=0 must be at least 1"):
        prior.sample_actions(embodiment_ids=ids, num_inference_steps=0)


def test_a_backbones_reference_can_be_given_to_a_config(bodies: list, save_policy: Callable, tmp_path: Path) -> None:
    folder = save_policy(tmp_path / "policy", bodies)
    reference = {**PriorVLAConfig.from_pretrained(folder).backbone, "name": "another"}
    assert PriorVLAConfig.from_pretrained(folder, backbone=reference).backbone == reference


def test_a_past_means_the_same_however_it_is_padded(prior: ActionPriorModel) -> None:
    encoder, steps = prior.encoder, 3
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    actions, states, ids = torch.randn(2, steps, 7), torch.randn(2, steps, 5), torch.tensor([0, 1])
    alone = encoder(states, actions, ids)
    for before, after in ((5, 0), (0, 5), (2, 1)):
        around = (0, 0, before, after)
        mask = torch.nn.functional.pad(torch.ones_like(actions, dtype=torch.bool), around)
        padded = (torch.nn.functional.pad(x, around, value=9.0) for x in (states, actions))
        assert (encoder(*padded, ids, mask) - alone).abs().max() < 1e-5
    assert (encoder(states.flip(1), actions.flip(1), ids) - alone).abs().max() > 1e-3
    lengths = torch.tensor([1, 3])  # of which each has its own padding in one batch
    mask = (torch.arange(steps) >= steps - lengths[:, None])[..., None].expand_as(actions)
    mixed = encoder(states, actions, ids, mask)
    assert (mixed[1] - alone[1]).abs().max() < 1e-5
    assert (mixed[:1] - encoder(states[:1, 2:], actions[:1, 2:], ids[:1])).abs().max() < 1e-5
