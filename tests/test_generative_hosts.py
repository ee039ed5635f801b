"""A generative backbone under every host, with real images and words: what is blind, what is equal, what acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.modeling_priorvla.backbone import describe_backbone, load_backbone
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims
from priorvla.training.observing_trainer import as_features

H, HISTORY = 6, 3
SEEING = ["cross", "joint", "gated"]
HOSTS = {
    "latent": {"fusion": "latent"},
    "latent, backbone's tail": {"fusion": "latent", "tail": "backbone"},
    "latent, tail, history": {"fusion": "latent", "tail": "backbone", "use_history": True, "history_size": HISTORY},
    "cross": {"fusion": "cross"},
    "joint": {"fusion": "joint"},
    "gated": {"fusion": "gated"},
    "gated, z' of the tail": {"fusion": "gated", "use_latent": True, "tail": "backbone"},
}
SEEN = ("pixel_values", "pixel_attention_mask", "input_ids", "attention_mask")
FELT = ("state", "embodiment_ids")
PAST = ("history_states", "history_actions", "history_mask")


@pytest.fixture(scope="module")
def backbones(tiny_smolvlm):
    """By dtype."""
    reference = {"source": "hub", "name": "tiny"}
    return {dtype: load_backbone({**reference, "dtype": dtype}, tiny_smolvlm) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def make_model(tiny_smolvlm, backbones, bodies, tiny_fields):
    """`(start="random", dtype="float32", **fields)`, in which every path has an effect, with its backbone."""

    def make(start="random", dtype="float32", **fields):
        described = describe_backbone(tiny_smolvlm, source="hub", name="tiny", dtype=dtype)
        expert = {**tiny_fields["expert"], **expert_dims(bodies)}
        fields = {
            "fusion_transformer": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
            "backbone": {key: described[key] for key in BACKBONE_KEYS},
            "backbone_layers": described["num_layers"],
            "vision_hidden_size": described["vision_hidden_size"],
            "text_hidden_size": described["text_hidden_size"],
            "num_cameras": 2,
            "num_inference_steps": 4,
            **fields,
        }
        torch.manual_seed(0)
        if start == "action prior":
            prior = ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"]))
            model = PriorVLAModel.from_action_prior(awake(prior), **fields)
        else:
            encoder = tiny_fields["encoder"] if fields.get("use_history") else None
            model = awake(PriorVLAModel(PriorVLAConfig(expert=expert, encoder=encoder, **fields)))
        return model.to(getattr(torch, dtype)).attach_backbone(backbones[dtype]).eval()

    return make


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, bodies, write_demonstrations, tiny_smolvlm, backbones):
    """`(taps, history_size=0)`: cached and live windows of both bodies, of which one has a frame less in view."""
    folder = tmp_path_factory.mktemp("data")
    sources = [
        load_trajectories(write_demonstrations(folder / body.name, body, [4, 3], seed), frames=True)
        for seed, body in enumerate(bodies)
    ]
    processor = PriorVLAProcessor.for_backbone(tiny_smolvlm, bodies, chunk_size=H)

    def make(taps, history_size=0):
        windows = TrajectoryDataset(sources, bodies, H, history_size=history_size)
        cached = ObservationDataset(
            windows, sources, backbones["float32"], processor, folder / "features", taps=tuple(taps)
        )
        return cached, LiveObservationDataset(windows, sources, processor)

    return make


def awake(model):
    """What starts at zero has moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def observation(words: int = 0) -> dict[str, torch.Tensor]:
    """Two robots, one of them with a camera less, and one of two instructions for each; nothing else differs."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.tensor([[[8, 10, 11, 12], [13, 10, 17, 6]], [[9, 10, 12, 17], [14, 15, 10, 16]]][words])
    return {
        "pixel_values": torch.randn(2, 2, 3, 28, 28, generator=generator),
        "pixel_attention_mask": torch.tensor([[True, True], [True, False]]),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "state": torch.randn(2, 5, generator=generator),
        "embodiment_ids": torch.tensor([0, 1]),
    }


def act(model: PriorVLAModel, words: int = 0, **changes) -> torch.Tensor:
    noise = torch.randn(2, H, 7, generator=torch.Generator().manual_seed(2))
    return model.sample_actions(**{**observation(words), "noise": noise, **changes})


# --- every host -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_learns_from_pixels_and_words_and_its_backbone_stays(make_model, datasets, backbones, host):
    model = make_model(**HOSTS[host]).train()
    _, live = datasets(model.config.taps, HISTORY if "history" in host else 0)
    batch = live.__getitems__([0, 2, 8, 12])
    before = {name: value.clone() for name, value in backbones["float32"].state_dict().items()}
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(8):
        optimizer.zero_grad()
        output = model(**batch, generator=torch.Generator().manual_seed(0))
        output.loss.backward()
        losses.append(output.loss.item())
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    unused = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused <= {"expert"}, "a tail without gradient"
    assert all(torch.equal(value, before[name]) for name, value in backbones["float32"].state_dict().items())
    given = {key: batch[key] for key in (*SEEN, *FELT, *PAST) if key in batch}
    chunk = model.eval().sample_actions(**given, generator=torch.Generator().manual_seed(0))
    assert chunk.shape == (4, H, 7) and chunk.isfinite().all()


@pytest.mark.parametrize("host", HOSTS)
def test_images_words_and_state_each_matter_in_every_host(make_model, host):
    model, seen = make_model(**HOSTS[host]), observation()
    expected = act(model)
    assert torch.equal(act(model), expected)
    assert not torch.allclose(act(model, words=1), expected, atol=1e-4)
    for key in ("pixel_values", "state"):
        assert not torch.allclose(act(model, **{key: seen[key] + 1}), expected, atol=1e-4), key
    hidden = seen["pixel_values"].clone()
    hidden[1, 1] += 9  # of a camera that is not there
    torch.testing.assert_close(act(model, pixel_values=hidden), expected, atol=1e-5, rtol=0)


def test_the_past_changes_what_the_backbones_tail_says_and_an_empty_one_does_not(make_model):
    model = make_model(**HOSTS["latent, tail, history"])
    generator = torch.Generator().manual_seed(4)
    mask = torch.ones(2, HISTORY, 7, dtype=torch.bool)
    past = {
        "history_states": torch.randn(2, HISTORY, 5, generator=generator),
        "history_actions": torch.randn(2, HISTORY, 7, generator=generator),
        "history_mask": mask,
    }
    assert not torch.allclose(act(model, **past), act(model), atol=1e-4)
    empty = {**past, "history_mask": torch.zeros_like(mask)}
    louder = {**empty, "history_actions": past["history_actions"] + 5}
    torch.testing.assert_close(act(model, **empty), act(model, **louder), atol=1e-5, rtol=0)


# --- to the bit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("start", ["random", "action prior"])
@pytest.mark.parametrize("fusion", SEEING)
def test_rung_2_does_not_hear_the_prompt_and_rung_3_begins_as_it_to_the_bit(make_model, fusion, start, dtype):
    prior = awake(make_model(start, dtype, fusion=fusion, language=False))
    expected = act(prior)
    assert torch.equal(act(prior, words=1), expected)
    assert torch.equal(act(prior, input_ids=None, attention_mask=None), expected)
    for insertion in ("before", "after"):
        policy = PriorVLAModel.from_vision_action_prior(prior, insertion=insertion).to(getattr(torch, dtype)).eval()
        assert policy.backbone is prior.backbone
        assert torch.equal(act(policy), expected) and torch.equal(act(policy, words=1), expected)
    awake(policy)
    assert not torch.equal(act(policy, words=1), act(policy))


# --- cached features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "language"), [("latent", True), *((fusion, language) for fusion in SEEING for language in (False, True))]
)
def test_cached_features_give_the_loss_and_gradients_of_live_ones(make_model, datasets, fusion, language):
    model = make_model(fusion=fusion, language=language, num_cameras=1).train()
    cached, live = datasets(model.config.taps)
    results = []
    for dataset in (cached, live):
        model.zero_grad()
        batch = as_features(dataset.__getitems__([0, 5, 8, 12]), model.config.taps)
        loss = model(**batch, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_with_cached_features_no_step_asks_the_backbone(make_model, datasets, backbones):
    model = make_model(fusion="gated").train()
    cached, _ = datasets(model.config.taps)
    calls: list = []
    hooks = [module.register_forward_hook(lambda *_: calls.append(None)) for module in backbones["float32"].modules()]
    model(**as_features(cached.__getitems__([0, 1]), model.config.taps)).loss.backward()
    for hook in hooks:
        hook.remove()
    assert not calls


def test_a_tail_of_the_backbones_own_cannot_continue_from_cached_features(make_model, datasets):
    model = make_model(**HOSTS["latent, backbone's tail"])
    cached, _ = datasets(model.config.taps)
    with pytest.raises(ValueError, match="these language features hold no keys and values"):
        model(**as_features(cached.__getitems__([0]), model.config.taps))


def test_one_prefix_serves_every_denoising_step(make_model, backbones):
    for host in HOSTS.values():
        model = make_model(**host)
        calls: list = []
        hook = backbones["float32"].language_model.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        cached = act(model, num_inference_steps=5)
        once = len(calls)
        repeated = act(model, num_inference_steps=5, use_cache=False)
        hook.remove()
        assert once == 2 + (model.config.tail == "backbone") and len(calls) - once == 5 * once
        torch.testing.assert_close(repeated, cached, atol=1e-6, rtol=0)


def test_numbers_are_finite_in_bfloat16_for_a_row_without_any_camera(make_model):
    for host in HOSTS.values():
        blind = torch.tensor([[True, True], [False, False]])
        chunk = act(make_model(dtype="bfloat16", **host), pixel_attention_mask=blind)
        assert np.isfinite(chunk.numpy()).all()
