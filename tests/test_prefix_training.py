"""Clean prefixes in training: how often and how long they are, and that a chunk is then continued where it stands."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.modeling_priorvla.flow_draws import prefix_lengths
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel

H = 8
EXPERT = {
    "embodiments": ["pendulum"],
    "action_dims": [2],
    "state_dims": [0],
    "chunk_size": H,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "latent_dim": 8,
    "expert_layers": ["motion", "motion"],
}
ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "states": "without",
}


def make_prior(**fields) -> ActionPriorModel:
    torch.manual_seed(0)
    return ActionPriorModel(ActionPriorConfig(expert=EXPERT, encoder=ENCODER, **fields))


def swings(count: int, generator: torch.Generator) -> torch.Tensor:
    """Chunks (count, H, 2) of circular motion: radius, phase and speed differ, so only a beginning tells the rest."""
    radius, phase, speed = (torch.rand(count, 1, generator=generator) for _ in range(3))
    angle = 2 * math.pi * phase + (0.2 + 0.3 * speed) * torch.arange(H)
    return (0.5 + 0.7 * radius)[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)


def train(**fields) -> ActionPriorModel:
    """200 short steps; the latent is hidden nine times of ten, so that a prefix is what there is to go by."""
    model = make_prior(latent_dropout=0.9, **fields).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=200)
    ids = torch.zeros(32, dtype=torch.long)
    for _ in range(200):
        loss = model(swings(32, generator), ids, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def test_a_prefix_is_as_frequent_as_asked_and_every_length_as_likely():
    uniform = torch.rand(60_000, generator=torch.Generator().manual_seed(0))
    lengths = prefix_lengths(uniform, torch.full((60_000,), 12), 0.3, 5)
    shares = torch.bincount(lengths, minlength=6) / len(lengths)
    torch.testing.assert_close(shares, torch.tensor([0.7, *[0.06] * 5]), atol=5e-3, rtol=0)


def test_a_prefix_never_takes_the_last_real_step_of_a_window():
    uniform = torch.linspace(0, 1 - 1e-7, 1001)
    for valid in range(1, 7):
        lengths = prefix_lengths(uniform, torch.full((1001,), valid), 1.0, 4)
        assert lengths.max() == min(valid - 1, 4)
        assert valid == 1 or lengths.min() == 1


def test_prefixes_are_shown_in_training_alone_and_what_they_show_does_not_count():
    model = make_prior(prefix_probability=1.0, latent_noise=0.0, latent_dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    actions, ids = swings(5, generator), torch.zeros(5, dtype=torch.long)
    draws = model.draw(5, H, generator)
    lengths = prefix_lengths(draws.prefix, torch.full((5,), H), 1.0, H // 2)
    assert 1 <= lengths.min() <= lengths.max() <= H // 2
    explicit = model.eval()(actions, ids, draws=draws, prefix_length=lengths).loss
    without = model(actions, ids, draws=draws).loss
    drawn = model.train()(actions, ids, draws=draws).loss
    torch.testing.assert_close(drawn, explicit)
    assert not torch.allclose(drawn, without)


def test_training_draws_nothing_from_the_global_generator():
    model = make_prior(prefix_probability=0.5).train()
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    model(swings(3, generator), torch.zeros(3, dtype=torch.long), generator=generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prior_trained_with_clean_prefixes_goes_on_where_one_trained_without_breaks_off():
    generator = torch.Generator().manual_seed(9)
    truth, known = swings(512, generator), 3
    ids = torch.zeros(512, dtype=torch.long)
    noise = torch.randn(512, H, 2, generator=generator)
    joint, loss = {}, {}
    for probability in (0.0, 0.25):
        model = train(prefix_probability=probability)
        chunk = model.sample_actions(embodiment_ids=ids, noise=noise, prefix_actions=truth[:, :known])
        joint[probability] = (chunk[:, known] - truth[:, known]).abs().mean().item()
        with torch.no_grad():
            loss[probability] = model(truth, ids, noise=noise, timestep=torch.linspace(0, 1, 512)).loss.item()
    assert joint[0.25] < 0.7 * joint[0.0]
    assert loss[0.25] < 1.1 * loss[0.0]  # and beginning from nothing does not suffer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_probability": 1.5}, "prefix_probability=1.5"),
        ({"prefix_probability": -0.1}, "prefix_probability=-0.1"),
        ({"max_prefix_length": H}, rf"max_prefix_length={H} must be in \[0, {H}\)"),
    ],
)
def test_an_impossible_prefix_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ActionPriorConfig(expert=EXPERT, encoder=ENCODER, **fields)


def test_the_longest_prefix_is_half_a_chunk_unless_told():
    assert ActionPriorConfig(expert=EXPERT, encoder=ENCODER).max_prefix_length == H // 2
