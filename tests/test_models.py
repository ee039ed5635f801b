"""Both models: losses, masks, saving, transfer, the history token, and what must not change an output."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.backbone import LanguageFeatures, VisionFeatures
from priorvla.modeling_priorvla.flow_matching import velocity_loss
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel, noisy_latent
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel, alignment_loss
from priorvla.modeling_priorvla.trajectory_encoder import unit_norm

B, H, D, S = 3, 6, 7, 5
EXPERT = {
    "embodiments": ["small", "large"],
    "action_dims": [4, 7],
    "state_dims": [3, 5],
    "chunk_size": H,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "latent_dim": 8,
    "expert_layers": ["motion", "motion"],
}
ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
FUSION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VLA = {
    "fusion_transformer": FUSION,
    "vision_hidden_size": 16,
    "text_hidden_size": 24,
    "backbone_layers": 2,
    "num_cameras": 2,
}
HEUN = {"_class_name": "FlowMatchHeunDiscreteScheduler"}


def awake(model: nn.Module) -> nn.Module:
    """A model past its birth: what starts at zero has moved, so that every path can be seen in the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make_prior(**fields) -> ActionPriorModel:
    torch.manual_seed(0)
    return awake(
        ActionPriorModel(ActionPriorConfig(expert={**EXPERT, **fields.pop("expert", {})}, encoder=ENCODER, **fields))
    )


def make_vla(**fields) -> PriorVLAModel:
    torch.manual_seed(0)
    return awake(PriorVLAModel(PriorVLAConfig(**{"expert": EXPERT, "encoder": ENCODER, **VLA, **fields})))


def trajectories() -> dict:
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(B, H, D, dtype=torch.bool)
    mask[1, 4:] = False
    return {
        "actions": torch.randn(B, H, D, generator=generator),
        "states": torch.randn(B, H, S, generator=generator),
        "embodiment_ids": torch.tensor([0, 1, 0]),
        "action_mask": mask,
    }


def observations(cameras: int = 2, tokens: int = 5) -> dict:
    generator = torch.Generator().manual_seed(3)
    vision = torch.ones(B, cameras * 4, dtype=torch.bool)
    vision[0, 4:] = False  # the first robot has one camera
    hidden = torch.randn(B, 1, cameras * 4, 16, generator=generator)
    language = torch.arange(tokens) < torch.tensor([5, 3, 4])[:, None]
    return {
        "state": torch.randn(B, S, generator=generator),
        "vision_features": VisionFeatures(hidden, vision, cameras, (2,)),
        "language_features": LanguageFeatures(torch.randn(B, 1, tokens, 24, generator=generator), language, None),
    }


def fixed_draws() -> dict:
    generator = torch.Generator().manual_seed(4)
    return {"noise": torch.randn(B, H, D, generator=generator), "timestep": torch.rand(B, generator=generator)}


def pasts(steps: int = 4) -> dict:
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(B, steps, D, dtype=torch.bool)
    mask[0, :2] = False
    mask[2] = False  # an episode that has just begun
    return {
        "history_states": torch.randn(B, steps, S, generator=generator),
        "history_actions": torch.randn(B, steps, D, generator=generator),
        "history_mask": mask,
    }


def rows(batch: dict, chosen) -> dict:
    """Some rows of a batch, features included."""
    cut = {}
    for key, value in batch.items():
        if isinstance(value, VisionFeatures | LanguageFeatures):
            cut[key] = replace(value, hidden_states=value.hidden_states[chosen], mask=value.mask[chosen])
        else:
            cut[key] = value[chosen]
    return cut


# --- the action prior -------------------------------------------------------------------------------------------------


def test_the_priors_loss_is_the_flow_matching_regression_from_its_own_latent():
    model, batch, draws = make_prior(), trajectories(), fixed_draws()
    output = model(**batch, **draws)
    mask = batch["action_mask"] & (torch.arange(D) < torch.tensor([4, 7, 4])[:, None])[:, None]
    actions = batch["actions"] * mask
    tau = draws["timestep"][:, None, None]
    noisy = (1 - tau) * actions + tau * draws["noise"]
    context = model.expert.encode_context(batch["embodiment_ids"], output.latent, state=None)
    velocity = model.expert(noisy, draws["timestep"], batch["embodiment_ids"], context, mask)
    torch.testing.assert_close(output.velocity, velocity)
    torch.testing.assert_close(output.loss, velocity_loss(velocity, draws["noise"] - actions, mask))


def test_the_latent_has_unit_norm_and_depends_on_states_and_actions_unless_states_are_left_out():
    batch = trajectories()
    other = {**batch, "states": batch["states"] + 1}
    without = {**ENCODER, "states": "without"}
    model = make_prior()
    latent = model.encode(**batch)
    torch.testing.assert_close(latent.norm(dim=-1), torch.ones(B))
    assert not torch.allclose(latent, model.encode(**other))
    torch.manual_seed(0)
    blind = awake(ActionPriorModel(ActionPriorConfig(expert=EXPERT, encoder=without)))
    assert torch.equal(blind.encode(**batch), blind.encode(**{**other, "states": None}))
    assert not torch.allclose(blind.encode(**batch), blind.encode(**{**batch, "actions": batch["actions"] + 1}))


def test_padding_of_steps_and_dims_is_never_read_even_when_it_is_not_a_number():
    model, batch, draws = make_prior(), trajectories(), fixed_draws()
    spoiled = {**batch, "actions": batch["actions"].clone(), "states": batch["states"].clone()}
    spoiled["actions"][1, 4:] = float("nan")
    spoiled["states"][1, 4:] = float("nan")
    spoiled["actions"][0, :, 4:] = float("nan")
    spoiled["states"][0, :, 3:] = float("nan")
    clean, odd = model(**batch, **draws), model(**spoiled, **draws)
    torch.testing.assert_close(odd.loss, clean.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(odd.latent, clean.latent, atol=1e-5, rtol=0)


def test_the_other_rows_of_a_batch_do_not_change_a_row():
    model, batch, draws = make_prior(), trajectories(), fixed_draws()
    together = model(**batch, **draws)
    for row in range(B):
        alone = model(**rows(batch, [row]), **rows(draws, [row]))
        torch.testing.assert_close(alone.latent[0], together.latent[row], atol=1e-5, rtol=0)
        real = batch["action_mask"][row].any(-1)
        torch.testing.assert_close(alone.velocity[0][real], together.velocity[row][real], atol=1e-5, rtol=0)


def test_sampling_is_a_function_of_its_noise_and_leaves_foreign_dims_at_zero():
    model, ids = make_prior(), torch.tensor([0, 1, 0])
    first, again = (
        model.sample_actions(embodiment_ids=ids, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    other = model.sample_actions(embodiment_ids=ids, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert first.shape == (B, H, D)
    assert (first[0, :, 4:] == 0).all() and (first[1] != 0).all()


def test_a_latent_a_scheduler_and_a_step_count_each_matter_to_a_sample():
    model, ids, noise = make_prior(), torch.tensor([1, 1, 1]), fixed_draws()["noise"]
    latents = unit_norm(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    base = model.sample_actions(latents[:1].expand(B, -1), embodiment_ids=ids, noise=noise)
    others = [
        model.sample_actions(None, embodiment_ids=ids, noise=noise),
        model.sample_actions(latents[1:].expand(B, -1), embodiment_ids=ids, noise=noise),
        model.sample_actions(latents[:1].expand(B, -1), embodiment_ids=ids, noise=noise, scheduler=HEUN),
        model.sample_actions(latents[:1].expand(B, -1), embodiment_ids=ids, noise=noise, num_inference_steps=3),
    ]
    assert not any(torch.allclose(base, other, atol=1e-4) for other in others)


def test_reconstruction_samples_from_the_trajectorys_own_latent():
    model, batch, noise = make_prior(), trajectories(), fixed_draws()["noise"]
    latent = model.encode(**batch)
    mask, ids = batch["action_mask"], batch["embodiment_ids"]
    sampled = model.sample_actions(latent, embodiment_ids=ids, noise=noise, action_mask=mask)
    torch.testing.assert_close(model.reconstruct(**batch, noise=noise), sampled)


def test_a_clean_prefix_stands_in_a_sample_and_does_not_count_in_the_loss():
    model, batch, draws = make_prior(), trajectories(), fixed_draws()
    prefix, length = batch["actions"][:, :3], torch.tensor([0, 2, 3])
    sample = model.sample_actions(
        embodiment_ids=batch["embodiment_ids"], noise=draws["noise"], prefix_actions=prefix, prefix_length=length
    )
    torch.testing.assert_close(sample[1, :2], prefix[1, :2])
    torch.testing.assert_close(sample[2, :3, :4], prefix[2, :, :4])
    whole, given = model(**batch, **draws), model(**batch, **draws, prefix_length=length)
    assert not torch.allclose(whole.loss, given.loss)
    torch.testing.assert_close(given.velocity[0], whole.velocity[0])  # a prefix of 0 steps is none


def test_training_hides_the_latent_as_often_as_its_dropout_says_and_evaluation_never():
    model, batch, draws = (
        make_prior(latent_dropout=0.999, latent_noise=0.0, prefix_probability=0.0),
        trajectories(),
        fixed_draws(),
    )
    null = model.expert.encode_context(batch["embodiment_ids"], None)
    mask = model.real_entries(batch["embodiment_ids"], H, batch["action_mask"])
    without = model.predict_velocity(batch["actions"], batch["embodiment_ids"], null, mask, **draws)
    assert not torch.allclose(model.eval()(**batch, **draws).loss, without.loss())
    torch.testing.assert_close(model.train()(**batch, **draws).loss, without.loss())


def test_latent_noise_moves_a_latent_on_its_sphere_by_about_its_norm():
    latent = unit_norm(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)))
    moved = noisy_latent(latent, 0.5, torch.randn(latent.shape, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(moved.norm(dim=-1), torch.ones(4000))
    # a step of norm 0.5, nearly orthogonal in 32 dims, turns a unit vector to a cosine of 1 / sqrt(1 + 0.25)
    assert (latent * moved).sum(-1).mean().item() == pytest.approx(1.25**-0.5, abs=0.02)
    assert noisy_latent(latent, 0.0, moved) is latent


def test_an_embodiment_that_the_checkpoint_does_not_know_is_refused_by_number():
    with pytest.raises(ValueError, match=r"embodiment_ids \[0, 2\].*small"):
        make_prior().sample_actions(embodiment_ids=torch.tensor([0, 2]))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2, 3\)"):
        make_prior().sample_actions(embodiment_ids=torch.tensor([0]), noise=torch.zeros(1, 2, 3))


def test_a_state_in_the_context_changes_what_is_sampled_and_is_asked_for():
    model = make_prior(expert={"context_tokens": ["latent", "soft", "state"]})
    ids, noise = torch.tensor([0, 1, 0]), fixed_draws()["noise"]
    one, two = (model.sample_actions(embodiment_ids=ids, noise=noise, state=torch.full((B, S), v)) for v in (0.0, 1.0))
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match="pass state"):
        model.sample_actions(embodiment_ids=ids, noise=noise)


# --- the VLA ----------------------------------------------------------------------------------------------------------


def test_the_vlas_loss_is_the_papers_sum_of_three_terms():
    model, batch, draws, seen = make_vla(), trajectories(), fixed_draws(), observations()
    output = model(**batch, **draws, **seen, distillation_weight=0.25)
    ids, mask = batch["embodiment_ids"], model.real_entries(batch["embodiment_ids"], H, batch["action_mask"])
    predicted = model.predict_latent(seen["vision_features"], seen["language_features"], seen["state"], ids)
    target = model.encode(**batch)

    def flow(latent):
        context = model.expert.encode_context(ids, latent)
        return model.predict_velocity(batch["actions"], ids, context, mask, **draws).loss()

    align = ((predicted - target) ** 2).sum(-1).mean()
    torch.testing.assert_close(output.losses["pred"], flow(predicted))
    torch.testing.assert_close(output.losses["recon"], flow(target))
    torch.testing.assert_close(output.losses["align"], align)
    torch.testing.assert_close(output.loss, flow(predicted) + 0.25 * (align + flow(target)))


def test_alignment_teaches_the_vla_and_not_the_encoder():
    predicted, target = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    alignment_loss(predicted, target).backward()
    assert predicted.grad is not None and target.grad is None


def test_without_distillation_the_encoder_is_not_run():
    model = make_vla()
    model.encoder.register_forward_hook(lambda *_: pytest.fail("the encoder was run"))
    output = model(**trajectories(), **observations())
    assert set(output.losses) == {"pred"}


def test_the_history_loss_is_the_mean_with_and_without_the_past():
    model, batch, draws, seen, past = make_vla(use_history=True), trajectories(), fixed_draws(), observations(), pasts()
    both = model(**batch, **draws, **seen, **past)
    without = model(**batch, **draws, **seen)
    arguments = (seen["vision_features"], seen["language_features"], seen["state"], batch["embodiment_ids"])
    context = model.expert.encode_context(batch["embodiment_ids"], model.predict_latent(*arguments, *past.values()))
    mask = model.real_entries(batch["embodiment_ids"], H, batch["action_mask"])
    with_past = model.predict_velocity(batch["actions"], batch["embodiment_ids"], context, mask, **draws).loss()
    torch.testing.assert_close(both.losses["pred"], (without.losses["pred"] + with_past) / 2)


def test_a_past_changes_z_prime_and_an_empty_one_is_as_none():
    model, seen, past = make_vla(use_history=True), observations(), pasts()
    arguments = (seen["vision_features"], seen["language_features"], seen["state"], torch.tensor([0, 1, 0]))
    without, with_past = model.predict_latent(*arguments), model.predict_latent(*arguments, *past.values())
    assert not torch.allclose(without[:2], with_past[:2])
    torch.testing.assert_close(without[2], with_past[2], atol=1e-5, rtol=0)


def test_padding_of_text_cameras_history_and_dims_changes_no_chunk():
    model, seen, past, ids = make_vla(use_history=True), observations(), pasts(), torch.tensor([0, 1, 0])
    noise = fixed_draws()["noise"]
    clean = model.sample_actions(**seen, **past, embodiment_ids=ids, noise=noise)
    vision, language = seen["vision_features"], seen["language_features"]
    spoiled = {
        "state": seen["state"].clone(),
        "vision_features": replace(vision, hidden_states=vision.hidden_states + 9 * ~vision.mask[:, None, :, None]),
        "language_features": replace(
            language, hidden_states=language.hidden_states + 9 * ~language.mask[:, None, :, None]
        ),
    }
    spoiled["state"][0, 3:] = 9.0
    past = {**past, "history_actions": past["history_actions"] + 9 * ~past["history_mask"]}
    odd = model.sample_actions(**spoiled, **past, embodiment_ids=ids, noise=noise)
    torch.testing.assert_close(odd, clean, atol=1e-5, rtol=0)


def test_a_batch_of_prompts_and_cameras_equals_one_by_one_with_their_padding_cut_off():
    model, seen, ids, noise = make_vla(), observations(), torch.tensor([0, 1, 0]), fixed_draws()["noise"]
    together = model.sample_actions(**seen, embodiment_ids=ids, noise=noise)
    alone = rows(seen, [0])
    vision = alone["vision_features"]
    alone["vision_features"] = VisionFeatures(vision.hidden_states[:, :, :4], vision.mask[:, :4], 1, (2,))
    for row, tokens, part in ((0, 5, alone), (1, 3, rows(seen, [1])), (2, 4, rows(seen, [2]))):
        language = part["language_features"]
        part["language_features"] = LanguageFeatures(
            language.hidden_states[:, :, :tokens], language.mask[:, :tokens], None
        )
        one = model.sample_actions(**part, embodiment_ids=ids[[row]], noise=noise[[row]])
        torch.testing.assert_close(one[0], together[row], atol=1e-5, rtol=0)


def test_images_instruction_and_state_each_matter_to_a_chunk():
    model, seen, ids, noise = make_vla(), observations(), torch.tensor([0, 1, 0]), fixed_draws()["noise"]
    base = model.sample_actions(**seen, embodiment_ids=ids, noise=noise)
    vision, language = seen["vision_features"], seen["language_features"]
    changes = {
        "vision_features": replace(vision, hidden_states=vision.hidden_states + 1),
        "language_features": replace(language, hidden_states=language.hidden_states + 1),
        "state": seen["state"] + 1,
    }
    for key, value in changes.items():
        changed = model.sample_actions(**{**seen, key: value}, embodiment_ids=ids, noise=noise)
        assert not torch.allclose(base, changed, atol=1e-4), key


def test_more_cameras_than_slots_are_refused():
    with pytest.raises(ValueError, match="the batch has 3 cameras, this model has 2"):
        make_vla().sample_actions(**observations(cameras=3), embodiment_ids=torch.tensor([0, 1, 0]))


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_prior, make_vla])
def test_a_gradient_reaches_every_parameter(make):
    model = make(expert={**EXPERT, "context_tokens": ["latent", "soft", "state"]}).train()
    batch = trajectories()
    if make is make_vla:
        model = make(use_history=True).train()
        batch |= observations() | pasts() | {"distillation_weight": 1.0}
    else:
        model.config.latent_dropout = 0.5
    for _ in range(8):  # a dropped latent leaves the encoder, and a kept one the null, without a gradient
        model(**batch).loss.backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == (["expert.null_latent"] if make is make_vla else [])


@pytest.mark.parametrize("make", [make_prior, make_vla])
def test_gradient_checkpointing_changes_no_gradient(make):
    gradients = []
    batch = {**trajectories(), **fixed_draws(), **(observations() if make is make_vla else {})}
    for checkpointed in (False, True):
        chance = {} if make is make_vla else {"latent_dropout": 0.0, "latent_noise": 0.0}
        model = make(prefix_probability=0.0, **chance).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, saved)


def test_sdpa_and_eager_attention_agree():
    batch, draws, velocities = trajectories(), fixed_draws(), []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = ActionPriorConfig(expert=EXPERT, encoder=ENCODER)
        config._attn_implementation = attention
        model = awake(ActionPriorModel(config))
        assert model.expert.layers[0].self_attn.config._attn_implementation == attention
        velocities.append(model(**batch, **draws).velocity)
    torch.testing.assert_close(*velocities, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_prior_samples_the_same_chunk_to_the_bit(tmp_path, dtype):
    model, ids = make_prior().to(dtype), torch.tensor([0, 1])
    model.save_pretrained(tmp_path)
    loaded = ActionPriorModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    one, two = (
        m.sample_actions(embodiment_ids=ids, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)
    )
    assert torch.equal(one, two)


def test_attention_starts_without_effect_on_actions_so_that_a_new_layer_disturbs_nothing():
    torch.manual_seed(0)
    model = ActionPriorModel(ActionPriorConfig(expert=EXPERT, encoder=ENCODER)).eval()
    ids, x, tau = torch.tensor([0, 1]), torch.randn(2, H, D), torch.rand(2)
    velocity = model.expert(x, tau, ids, model.expert.encode_context(ids, None))
    hidden = model.expert.action_in_proj(x, ids)
    torch.testing.assert_close(velocity, model.expert.action_out_proj(model.expert.final_norm(hidden), ids))


def test_a_vla_from_a_prior_has_its_every_weight_and_says_so():
    prior = make_prior()
    vla = PriorVLAModel.from_action_prior(prior, **VLA)
    theirs, ours = prior.state_dict(), vla.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    report = vla.transfer_report
    assert set(report.loaded) == set(theirs) and report.left == []
    assert set(report.created) == {name for name in ours if name.startswith("fusion.")}
    assert vla.config.expert.to_dict() == prior.config.expert.to_dict()


def test_a_vla_from_a_prior_inherits_its_sampling_unless_told_otherwise():
    prior = make_prior(num_inference_steps=3, time_distribution="uniform")
    inherited = PriorVLAModel.from_action_prior(prior, **VLA).config
    told = PriorVLAModel.from_action_prior(prior, **VLA, num_inference_steps=9).config
    assert (inherited.num_inference_steps, inherited.time_distribution) == (3, "uniform")
    assert (told.num_inference_steps, told.time_distribution) == (9, "uniform")
    with pytest.raises(ValueError, match="encoder cannot be given"):
        PriorVLAModel.from_action_prior(prior, **VLA, encoder=ENCODER)


def test_a_vlas_expert_fed_a_latent_is_the_priors_decoder():
    prior, ids, noise = make_prior(), torch.tensor([0, 1, 0]), fixed_draws()["noise"]
    vla = PriorVLAModel.from_action_prior(prior, **VLA).eval()
    for latent in (None, unit_norm(torch.randn(B, 8))):
        ours = vla.generate(ids, vla.expert.encode_context(ids, latent), noise=noise)
        assert torch.equal(ours, prior.sample_actions(latent, embodiment_ids=ids, noise=noise))


def test_prior_and_control_share_everything_but_the_transferred_weights():
    prior = make_prior()
    torch.manual_seed(7)
    from_prior = PriorVLAModel.from_action_prior(prior, **VLA)
    torch.manual_seed(7)
    control = PriorVLAModel(PriorVLAConfig.from_dict(from_prior.config.to_dict()))
    assert control.config.to_dict() == from_prior.config.to_dict()
    for name, value in control.state_dict().items():
        same = torch.equal(value, from_prior.state_dict()[name])
        assert same if name.startswith("fusion.") else True, name
    assert not torch.equal(control.expert.null_latent, from_prior.expert.null_latent)


def test_a_prior_of_another_shape_names_the_tensor_and_both_shapes():
    from priorvla.modeling_priorvla.transfer import transfer_parameters

    wide = make_prior(expert={"latent_dim": 16})
    before = make_vla()
    untouched = {name: value.clone() for name, value in before.state_dict().items()}
    with pytest.raises(ValueError, match=r"'expert.latent_proj.weight' has shape \(32, 16\).*\(32, 8\)"):
        transfer_parameters(wide, before)
    assert all(torch.equal(value, untouched[name]) for name, value in before.state_dict().items())


def test_a_clean_prefix_means_the_same_as_a_time_for_every_step():
    model, batch, tau = make_prior(), trajectories(), fixed_draws()["timestep"]
    clean = torch.arange(H) < torch.tensor([2, 0, 3])[:, None]
    ids, actions, mask = batch["embodiment_ids"], batch["actions"], batch["action_mask"]
    context = model.expert.encode_context(ids, None)
    told = model.expert(actions, tau, ids, context, mask, clean)
    by_step = tau[:, None].expand(-1, H)
    for timestep, marked in ((by_step.masked_fill(clean, 0.0), None), (by_step, clean)):
        torch.testing.assert_close(told, model.expert(actions, timestep, ids, context, mask, marked), atol=1e-5, rtol=0)
    assert not torch.allclose(told, model.expert(actions, tau, ids, context, mask))
