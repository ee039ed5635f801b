"""The hosts that see: what a prior is in them at step 0, what the instruction can reach, what learns, what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.expert_layout import even_taps, inserted_layout
from priorvla.modeling_priorvla.backbone import LanguageFeatures, VisionFeatures
from priorvla.modeling_priorvla.expert_layer import ExpertLayer
from priorvla.modeling_priorvla.hosts import Gate, HostMemory, SeeingLayer
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel

B, H, D, S, TAPS = 3, 6, 7, 5, 4
HOSTS = ["cross", "joint", "gated"]
EXPERT = {
    "embodiments": ["small", "large"],
    "action_dims": [4, 7],
    "state_dims": [3, 5],
    "chunk_size": H,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "latent_dim": 8,
    "expert_layers": ["motion", "motion"],
}
ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
SIZES = {"vision_hidden_size": 12, "text_hidden_size": 10, "backbone_layers": TAPS, "num_cameras": 2}
TAIL = {"fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}}
STARTS = ["random", "action prior", "vision-action prior", "both"]


def awake(model: nn.Module) -> nn.Module:
    """A model past its birth: what starts at zero has moved, so that every path can be seen in the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model.eval()


def make_prior(**fields) -> ActionPriorModel:
    torch.manual_seed(0)
    return awake(ActionPriorModel(ActionPriorConfig(expert=EXPERT, encoder=ENCODER, **fields)))


def make_host(fusion: str, start: str = "random", **fields) -> PriorVLAModel:
    """A host as it is born from `start`; every prior before it is awake."""
    torch.manual_seed(0)
    fields = {**SIZES, **TAIL, "fusion": fusion, **fields}
    if start == "random":
        return PriorVLAModel(PriorVLAConfig(expert=EXPERT, **fields)).eval()
    if start == "action prior":
        return PriorVLAModel.from_action_prior(make_prior(), **fields).eval()
    from_what = "action prior" if start == "both" else "random"
    seeing = awake(make_host(fusion, from_what, language=False))
    return PriorVLAModel.from_vision_action_prior(seeing).eval()


def observation(words: int = 0, cameras: int = 2, heard: bool = True) -> dict:
    """Features at every layer; `words` is the seed of the instruction, nothing else depends on it."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(B, cameras * 4, dtype=torch.bool)
    mask[0, 4:] = False
    hidden = torch.randn(B, TAPS + 1, cameras * 4, 12, generator=generator) * mask[:, None, :, None]
    state = torch.randn(B, S, generator=generator)
    spoken = torch.randn(B, 1, 5, 10, generator=torch.Generator().manual_seed(words))
    language_mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    language = LanguageFeatures(spoken * language_mask[:, None, :, None], language_mask, None)
    seen = {"state": state, "vision_features": VisionFeatures(hidden, mask, cameras, tuple(range(TAPS + 1)))}
    return seen | ({"language_features": language} if heard else {})


def batch() -> dict:
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(B, H, D, dtype=torch.bool)
    mask[1, 4:] = False
    return {
        "actions": torch.randn(B, H, D, generator=generator),
        "states": torch.randn(B, H, S, generator=generator),
        "embodiment_ids": torch.tensor([0, 1, 0]),
        "action_mask": mask,
        "noise": torch.randn(B, H, D, generator=generator),
        "timestep": torch.rand(B, generator=generator),
    }


def past(steps: int = 4) -> dict:
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(B, steps, D, dtype=torch.bool)
    mask[2] = False  # an episode that has just begun
    return {
        "history_states": torch.randn(B, steps, S, generator=generator),
        "history_actions": torch.randn(B, steps, D, generator=generator),
        "history_mask": mask,
    }


def act(model: PriorVLAModel, **changes) -> torch.Tensor:
    given = {**observation(), "embodiment_ids": torch.tensor([0, 1, 0]), "noise": batch()["noise"], **changes}
    return model.sample_actions(**given)


def velocity(model: PriorVLAModel, **changes) -> torch.Tensor:
    with torch.no_grad():
        return model(**{**batch(), **observation(), **changes}).velocity


# --- what a prior is at step 0 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("language", [True, False])
@pytest.mark.parametrize("fusion", HOSTS)
def test_an_action_prior_in_a_host_is_its_decoder_told_nothing_to_the_bit(fusion, language, dtype):
    prior, ids, noise = make_prior().to(dtype), torch.tensor([0, 1, 0]), batch()["noise"]
    host = PriorVLAModel.from_action_prior(prior, **{**SIZES, **TAIL}, fusion=fusion, language=language).eval()
    assert host.dtype == dtype
    assert torch.equal(act(host), prior.sample_actions(embodiment_ids=ids, noise=noise))
    assert host.encoder is None and any(name.startswith("encoder.") for name in host.transfer_report.left)
    assert all(name.startswith("expert.") for name in host.transfer_report.loaded)
    assert set(host.transfer_report.loaded) == {name for name in prior.state_dict() if name.startswith("expert.")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("insertion", ["before", "after"])
@pytest.mark.parametrize("start", ["random", "action prior"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_a_policy_begins_as_its_vision_action_prior_to_the_bit(fusion, start, insertion, dtype):
    prior = awake(make_host(fusion, start, language=False)).to(dtype)
    policy = PriorVLAModel.from_vision_action_prior(prior, insertion=insertion).eval()
    assert torch.equal(act(policy), act(prior))
    assert torch.equal(velocity(policy), velocity(prior))
    report = policy.transfer_report
    assert not report.left and len(report.loaded) == len(prior.state_dict())
    kinds = ["vision", "vision_language"] if insertion == "after" else ["vision_language", "vision"]
    assert policy.config.expert.expert_layers == kinds * 2
    inherited = [tap for kind, tap in zip(*_layout(policy), strict=True) if kind == "vision"]
    assert inherited == prior.config.expert.tap_layers


@pytest.mark.parametrize("insertion", ["before", "after"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_an_inserted_layer_begins_as_the_one_beside_it_but_for_its_gates_and_words(fusion, insertion):
    prior = awake(make_host(fusion, "random", language=False))
    policy = PriorVLAModel.from_vision_action_prior(prior, insertion=insertion)
    tensors, report = policy.state_dict(), policy.transfer_report
    assert set(report.copied) < set(report.created)
    assert all("words" in name or "gate" in name for name in set(report.created) - set(report.copied))
    assert f"created ({len(report.copied)} of them as copies)" in str(report)
    places, (_, taps) = (1, 0) if insertion == "after" else (0, 1), _layout(policy)
    pairs = [[f"{part}.{taps[place]}." for place in places] for part in ("vision_proj", "vision_norm")]
    for new, old in [[f"layers.{place}." for place in places], *pairs]:
        for name in (name for name in report.copied if new in name and "gate" not in name):
            parts = zip(*(tensors[each].chunk(6) for each in (name, name.replace(new, old))), strict=True)
            for place, (part, its) in enumerate(parts):
                shut = "modulation" in name and place in (2, 5)  # the gates
                assert (not part.any() and its.any()) if shut else torch.equal(part, its), name


def _layout(model: PriorVLAModel) -> tuple[list[str], list[int]]:
    return model.config.expert.expert_layers, model.config.expert.tap_layers


@pytest.mark.parametrize("gate", ["additive", "convex"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_the_papers_gates_are_half_open_at_first_and_do_not_leave_the_prior_as_it_was(fusion, gate):
    prior = make_prior()
    host = make_host(fusion, "action prior", gate=gate, language=False)
    ids, noise = torch.tensor([0, 1, 0]), batch()["noise"]
    assert not torch.allclose(act(host), prior.sample_actions(embodiment_ids=ids, noise=noise), atol=1e-3)
    seeing = {name: value for name, value in host.gate_values().items() if "context_" not in name}
    assert seeing and all(value == 0.5 for value in seeing.values())


def test_token_insertion_adds_no_layer_and_lets_the_inherited_ones_read():
    prior = awake(make_host("cross", language=False))
    policy = PriorVLAModel.from_vision_action_prior(prior, insertion="token").eval()
    assert policy.config.expert.expert_layers == ["vision_language"] * 2
    assert not torch.equal(act(policy), act(prior))
    assert not torch.allclose(act(policy), act(policy, **observation(words=1)), atol=1e-5)


@pytest.mark.parametrize("insertion", ["before", "after"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_after_two_steps_everything_new_has_had_a_gradient(fusion, insertion):
    prior = awake(make_host(fusion, "action prior", language=False))
    policy = PriorVLAModel.from_vision_action_prior(prior, insertion=insertion).train()
    policy.config.prefix_probability = 0.0
    optimizer, moved = torch.optim.SGD(policy.parameters(), lr=1e-2), set()
    for _ in range(2):
        optimizer.zero_grad()
        policy(**batch(), **observation()).loss.backward()
        moved |= {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert set(policy.transfer_report.created) - moved == set()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("fusion", HOSTS)
def test_every_host_from_every_start_learns_and_samples(fusion, start):
    model = make_host(fusion, start).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(12):
        optimizer.zero_grad()
        output = model(**batch(), **observation(), prefix_length=torch.zeros(B, dtype=torch.long))
        output.loss.backward()
        losses.append(output.loss.item())
        optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert losses[-1] < 0.7 * losses[0] and still <= {"expert.latent_proj.weight", "expert.latent_proj.bias"}
    assert act(model.eval()).isfinite().all()


@pytest.mark.parametrize("start", ["random", "action prior"])
def test_the_latent_host_learns_and_samples_from_both_of_its_starts(start):
    model = make_host("latent", start).train()
    model(**batch(), **observation()).loss.backward()
    assert act(model.eval()).isfinite().all()


# --- what the instruction can reach -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["random", "action prior"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_a_vision_action_prior_has_no_part_that_could_hear(fusion, start):
    model = awake(make_host(fusion, start, language=False))
    assert torch.equal(act(model), act(model, **observation(words=1)))
    assert torch.equal(act(model), act(model, language_features=None))
    spoken = observation()["language_features"]
    spoken.hidden_states.requires_grad_(True)
    model.train()(**batch(), **observation(heard=False), language_features=spoken).loss.backward()
    assert spoken.hidden_states.grad is None
    assert not [name for name, _ in model.named_parameters() if "words" in name]
    assert not torch.allclose(act(model.eval()), act(model, state=observation()["state"] + 1), atol=1e-4)


@pytest.mark.parametrize("fusion", HOSTS)
def test_inherited_layers_stay_blind_to_language_when_everything_has_been_trained(fusion):
    model = awake(make_host(fusion, "both"))
    memories = []
    for words in (0, 1):
        seen = observation(words)
        sight = model.look(seen["vision_features"], seen["language_features"], seen["state"], torch.tensor([0, 1, 0]))
        memories.append(model.expert.encode_context(torch.tensor([0, 1, 0]), sight=sight))
    for layer, one, other in zip(model.expert.layers, *memories, strict=True):
        assert torch.equal(one.context[0], other.context[0])
        same = all(torch.equal(a, b) for a, b in zip(one.memory, other.memory, strict=False) if a.shape == b.shape)
        assert same is not layer.reads_language
        assert one.memory[0].shape[2] == 8 + 1 + 5 * layer.reads_language
    assert not torch.allclose(act(model), act(model, **observation(words=1)), atol=1e-5)


@pytest.mark.parametrize("fusion", HOSTS)
def test_images_words_and_state_each_matter_to_a_chunk(fusion):
    model = awake(make_host(fusion))
    seen = observation()
    for changed in (
        {"vision_features": replace(seen["vision_features"], hidden_states=seen["vision_features"].hidden_states + 1)},
        observation(words=1),
        {"state": seen["state"] + 1},
    ):
        assert not torch.allclose(act(model), act(model, **changed), atol=1e-4)


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", HOSTS)
def test_padding_of_cameras_words_and_rows_changes_no_chunk(fusion):
    model, seen = awake(make_host(fusion)), observation()
    vision, language = seen["vision_features"], seen["language_features"]
    spoiled = {
        "vision_features": replace(vision, hidden_states=vision.hidden_states + 9 * ~vision.mask[:, None, :, None]),
        "language_features": replace(
            language, hidden_states=language.hidden_states + 9 * ~language.mask[:, None, :, None]
        ),
    }
    torch.testing.assert_close(act(model, **spoiled), act(model), atol=1e-5, rtol=0)
    alone = act(
        model,
        state=seen["state"][:1],
        vision_features=VisionFeatures(vision.hidden_states[:1, :, :4], vision.mask[:1, :4], 1, vision.taps),
        language_features=LanguageFeatures(language.hidden_states[:1], language.mask[:1], None),
        embodiment_ids=torch.tensor([0]),
        noise=batch()["noise"][:1],
    )
    torch.testing.assert_close(alone[0], act(model)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", ["latent", *HOSTS])
def test_what_is_seen_and_heard_is_computed_once_a_chunk_with_the_result_of_computing_it_always(fusion):
    model = awake(make_host(fusion))
    counts = dict.fromkeys(("sight", "layer"), 0)

    def count(name):
        return lambda *_: counts.__setitem__(name, counts[name] + 1)

    (model.memory or model.fusion).register_forward_hook(count("sight"))
    model.expert.layers[0].register_forward_hook(count("layer"))
    cached = act(model, num_inference_steps=10)
    assert counts == {"sight": 1, "layer": 1 + 10}
    again = act(model, num_inference_steps=10, use_cache=False)
    assert counts == {"sight": 1 + 10, "layer": 11 + 20}
    torch.testing.assert_close(again, cached, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fusion", HOSTS)
def test_a_new_body_changes_no_bit_of_the_old_ones(fusion):
    model = awake(make_host(fusion))
    before = act(model)
    model.add_embodiment("wide", 9, 6, like="large")
    noise = nn.functional.pad(batch()["noise"], (0, 2))
    state = nn.functional.pad(observation()["state"], (0, 1))
    assert torch.equal(act(model, noise=noise, state=state)[..., :D], before)
    wide = model.sample_actions(
        **{**observation(), "state": torch.randn(B, 6)}, embodiment_ids=torch.full((B,), 2), noise=torch.randn(B, H, 9)
    )
    assert wide.shape == (B, H, 9)


@pytest.mark.parametrize("start", ["random", "both"])
@pytest.mark.parametrize("fusion", HOSTS)
def test_a_loaded_host_samples_the_same_chunk_to_the_bit(fusion, start, tmp_path):
    model = awake(make_host(fusion, start))
    model.save_pretrained(tmp_path)
    loaded = PriorVLAModel.from_pretrained(tmp_path)
    assert torch.equal(act(loaded), act(model))
    assert _layout(loaded) == _layout(model)


@pytest.mark.parametrize("fusion", HOSTS)
def test_gradient_checkpointing_changes_no_gradient(fusion):
    gradients = []
    for checkpointed in (False, True):
        model = awake(make_host(fusion)).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**batch(), **observation(), prefix_length=torch.zeros(B, dtype=torch.long)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="use_reentrant=True loses gradients"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


# --- the past, z' and the losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", HOSTS)
def test_the_past_is_one_more_token_and_the_loss_the_mean_with_and_without_it(fusion):
    model = awake(make_host(fusion, use_history=True, encoder=ENCODER))
    without, told = act(model), act(model, **past())
    assert not torch.allclose(without[:2], told[:2], atol=1e-5)
    torch.testing.assert_close(without[2], told[2], atol=1e-5, rtol=0)
    with torch.no_grad():
        both = model(**batch(), **observation(), **past()).losses["pred"]
        alone = model(**batch(), **observation()).losses["pred"]
        sight = model.look(
            *list(observation().values())[1:], observation()["state"], batch()["embodiment_ids"], (*past().values(),)
        )
        context = model.expert.encode_context(batch()["embodiment_ids"], sight=sight)
        given = batch()
        mask = model.real_entries(given["embodiment_ids"], H, given["action_mask"])
        flow = model.predict_velocity(
            given["actions"], given["embodiment_ids"], context, mask, given["noise"], given["timestep"]
        )
    torch.testing.assert_close(both, (alone + flow.loss()) / 2)


@pytest.mark.parametrize("fusion", HOSTS)
def test_a_host_that_sees_may_have_z_prime_as_well_and_distil_it(fusion):
    model = make_host(fusion, "action prior", use_latent=True)
    output = model(**batch(), **observation(), distillation_weight=0.5)
    assert set(output.losses) == {"pred", "align", "recon"} and output.latent.shape == (B, 8)
    prior = make_prior()
    told = prior.sample_actions(output.latent, embodiment_ids=torch.tensor([0, 1, 0]), noise=batch()["noise"])
    torch.testing.assert_close(act(model), told, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"has no z' to align with .* use_latent=True"):
        make_host(fusion)(**batch(), **observation(), distillation_weight=0.5)


def test_weights_of_components_weigh_the_error_of_each_dim():
    model, weights = make_host("cross"), torch.zeros(2, D)
    weights[:, 0] = 1.0
    with torch.no_grad():
        output = model(**batch(), **observation(), loss_weights=weights)
    error = (output.velocity - (batch()["noise"] - batch()["actions"])).square()[..., 0]
    valid = batch()["action_mask"][..., 0]
    expected = torch.stack([row[real].mean() for row, real in zip(error, valid, strict=True)]).mean()
    torch.testing.assert_close(output.loss, expected)


# --- gates and layouts ------------------------------------------------------------------------------------------------


def test_a_gate_adds_or_mixes_by_its_form_and_in_the_dtype_of_the_residual():
    base, branch = torch.ones(1, 2, 3, dtype=torch.bfloat16), torch.full((1, 2, 3), 4.0)
    expected = {("zero", 0.0): 1.0, ("zero", 2.0): 9.0, ("additive", 0.0): 3.0, ("convex", 0.0): 2.5}
    for (form, weight), value in expected.items():
        gate = Gate(form, 3, born=0.0)
        nn.init.constant_(gate.weight, weight)
        mixed = gate(base, branch)
        assert mixed.dtype == torch.bfloat16 and (mixed == value).all(), form
        amount = weight if form == "zero" else 0.5
        assert (gate.blend(base, branch) == 1 + 3 * amount).all()


def test_taps_are_evenly_spaced_and_those_of_inherited_layers_stay():
    assert even_taps("joint", 4, 12) == [3, 6, 9, 12] and even_taps("cross", 4, 12) == [12] * 4
    assert even_taps("gated", 4, 2) == [1, 1, 2, 2]
    after, places = inserted_layout("gated", [3, 6, 9, 12], 12, "after")
    assert after["tap_layers"] == [3, 5, 6, 8, 9, 11, 12, 12] and places == [0, 2, 4, 6]
    before, places = inserted_layout("gated", [3, 6, 9, 12], 12, "before")
    assert before["tap_layers"] == [2, 3, 5, 6, 8, 9, 11, 12] and places == [1, 3, 5, 7]
    assert before["expert_layers"] == ["vision_language", "vision"] * 4


def test_one_expert_serves_all_hosts_and_the_difference_is_what_it_sees_with():
    motion = {name for name, _ in make_prior().expert.named_parameters()}
    for fusion in HOSTS:
        ours = {name for name, _ in make_host(fusion).expert.named_parameters()}
        assert motion <= ours and all("gate" in n or "cross" in n or "memory" in n for n in ours - motion)


def test_a_gate_in_a_checkpoint_is_told_by_name():
    values = make_host("gated", "both").gate_values()
    assert values["layers.1.stream_gate"] == 0 and values["layers.0.stream_gate"] > 0
    assert {name.rpartition(".")[2] for name in values} == {
        "context_attn_gate",
        "context_mlp_gate",
        "memory_gate",
        "stream_gate",
        "vision_gate",
        "words_gate",
    }


# --- refused ----------------------------------------------------------------------------------------------------------


def layered(kinds: list[str], taps: list) -> dict:
    return {"expert": {**EXPERT, "expert_layers": kinds, "tap_layers": taps}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion": "telepathy"}, "fusion='telepathy' is unknown, use latent, cross, joint, gated"),
        ({"fusion": "latent", "language": False}, "the query token has nothing to decide"),
        ({"fusion": "joint", "gate": "open"}, "gate='open' is unknown"),
        ({"fusion": "joint", "use_history": True}, "use_history=True needs the trajectory encoder"),
        ({"fusion": "joint", "backbone_training": "full", "stop_gradient_into_backbone": True}, "without any gradient"),
        ({"fusion": "joint", "tail": "backbone"}, "tail='backbone' makes z'"),
        ({"fusion": "joint", "use_latent": True, "language": False}, "leave it out of a vision-action prior"),
        ({"fusion": "joint", **layered(["vision", "motion"], [1, None])}, "takes vision and"),
        ({"fusion": "joint", **layered(["vision"], [1])}, "no expert layer reads"),
        ({"fusion": "gated", **layered(["vision_language"], [9])}, "is not among the backbone's layers 0 to 4"),
        ({"fusion": "cross", **layered(["vision_language"], [1])}, "must all be backbone_layers=4"),
        ({"fusion": "latent", **layered(["vision"], [1])}, "through its latent token alone"),
    ],
)
def test_a_host_that_cannot_be_is_refused_with_a_sentence(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        PriorVLAConfig(**{"expert": EXPERT, **SIZES, **fields})


def test_a_start_that_cannot_be_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="already reads instructions"):
        PriorVLAModel.from_vision_action_prior(make_host("joint"))
    seeing = make_host("joint", language=False)
    for field, value in (("fusion", "latent"), ("use_history", True), ("num_cameras", 1), ("gate", "convex")):
        with pytest.raises(ValueError, match=f"{field} cannot be given"):
            PriorVLAModel.from_vision_action_prior(seeing, **{field: value})
    with pytest.raises(ValueError, match=r"insertion='inside' is unknown, use before, after, token"):
        PriorVLAModel.from_vision_action_prior(seeing, insertion="inside")
    with pytest.raises(StrictDataclassError, match="no layer of the expert sees"):
        PriorVLAModel.from_action_prior(make_prior(), fusion="latent", language=False)
    features = observation()["vision_features"]
    untapped = replace(features, hidden_states=features.hidden_states[:, :1], taps=(0,))
    with pytest.raises(ValueError, match="layer 4 of the vision features was not tapped"):
        act(make_host("cross"), vision_features=untapped)


def test_layers_and_memory_are_what_the_config_says():
    model = make_host("gated", "both")
    assert all(isinstance(layer, SeeingLayer) for layer in model.expert.layers)
    assert [layer.reads_language for layer in model.expert.layers] == [False, True] * 2
    assert isinstance(model.memory, HostMemory) and set(model.memory.words_proj) == {"3", "4"}
    assert all(type(layer) is ExpertLayer for layer in make_host("latent").expert.layers)
