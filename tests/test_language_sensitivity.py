"""Does a policy listen: the measure on policies whose answer is known, and on real models, trained and deaf."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorvla.configuration.backbone_reference import BACKBONE_KEYS
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.modeling_priorvla.backbone import describe_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.live_observations import LiveObservationDataset
from priorvla.training.data.observation_dataset import ObservationDataset
from priorvla.training.data.readers import load_trajectories
from priorvla.training.data.trajectory import TrajectorySource
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, expert_dims
from priorvla.training.instruction_sampling import ModelSampler, draw_observations
from priorvla.training.language_sensitivity import language_sensitivity
from priorvla.training.paraphrases import paraphrase_of

OPEN, CLOSE = "open the drawer", "close the door"


class Shifting:
    """Normal noise around a place that the instruction shifts by so many standard deviations in every entry."""

    def __init__(self, shifts: dict[str, float], spread: float = 0.3) -> None:
        self.shifts, self.spread = shifts, spread

    def sample_chunks(self, observation, instructions, seeds):
        noise = np.stack([np.random.default_rng(seed).normal(size=(16, 10)) for seed in seeds])
        shifts = np.array([self.shifts.get(text, 0.0) for text in instructions])
        return observation["place"] + self.spread * noise + 0.3 * shifts[:, None, None, None]


def scenes(count: int = 12, instructions=(OPEN, CLOSE)) -> list[dict]:
    return [{"instruction": instructions[i % len(instructions)], "place": i} for i in range(count)]


# --- the measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.5, 2.0, 12.0])
def test_a_shift_by_standard_deviations_of_the_noise_reads_as_a_known_multiple_of_chance(shift):
    other_words = {OPEN: "pull it out", CLOSE: "push it to"}
    policy = Shifting({OPEN: shift, "pull it out": shift})
    heard = language_sensitivity(policy, scenes(), paraphrases=other_words)
    expected = np.sqrt(1 + shift**2 / 2)
    assert heard.swap.times == pytest.approx(expected, rel=0.03)
    assert heard.swap.effect.value == pytest.approx(1 - 1 / expected, abs=0.02)
    assert heard.paraphrase.times == pytest.approx(1, abs=1e-9)
    assert heard.spread == pytest.approx(0.3 * np.sqrt(2), rel=0.03)


def test_the_multiple_does_not_depend_on_how_many_chunks_are_drawn():
    few, many = (language_sensitivity(Shifting({OPEN: 3.0}), scenes(), samples=count) for count in (6, 48))
    assert few.swap.times == pytest.approx(many.swap.times, rel=0.05)


def test_a_deaf_policy_reads_one_exactly_and_chance_one_on_average():
    heard = language_sensitivity(Shifting({}), scenes(40))
    for movement in (heard.swap, heard.paraphrase, heard.empty):
        assert movement.times == 1 and movement.interval == (1, 1)
    low, high = heard.floor.interval
    assert low < 1 < high and high - low < 0.05
    assert "No, not measurably" in heard.describe()


def test_three_scenes_leave_room_for_luck():
    for seed in range(10):
        heard = language_sensitivity(Shifting({}), scenes(3), samples=4, seed=seed)
        assert heard.floor.interval[0] < 1 < heard.floor.interval[1]
        assert "No, not measurably" in heard.describe()


def test_what_chance_explains_is_not_called_listening():
    noisy = Shifting({OPEN: 0.05})
    assert (
        1 < language_sensitivity(noisy, scenes()).swap.times < language_sensitivity(noisy, scenes()).floor.interval[1]
    )
    assert "No, not measurably" in language_sensitivity(noisy, scenes()).describe()


def test_a_swap_is_to_what_the_scene_allows_where_that_is_known():
    policy = Shifting({OPEN: 0.0, CLOSE: 2.0, "take the cup": 6.0})
    known = [{**scene, "alternatives": ["take the cup", OPEN]} for scene in scenes(instructions=(OPEN,))]
    assert language_sensitivity(policy, known).swap.times == pytest.approx(np.sqrt(1 + 6**2 / 2), rel=0.03)


def test_one_instruction_leaves_nothing_to_swap_and_says_so():
    heard = language_sensitivity(Shifting({OPEN: 5.0}), scenes(instructions=(OPEN,)))
    assert heard.swap is None and heard.empty.times > 2
    assert not [name for name in heard.metrics() if "swap" in name]
    assert "all observations had the same" in heard.describe()


def test_metrics_are_flat_finite_numbers_even_where_chance_moves_nothing():
    heard = language_sensitivity(Shifting({OPEN: 2.0}), scenes())
    names = {f"{kind}{part}" for kind in ("swap", "paraphrase", "empty", "floor") for part in ("", "_low", "_high")}
    names |= {f"{kind}_effect" for kind in ("swap", "paraphrase", "empty", "floor")} | {"spread"}
    assert set(heard.metrics()) == {f"language_sensitivity/{name}" for name in names}
    told = heard.describe().splitlines()
    assert f"{heard.swap.times:.2f}" in told[1] and "12 observations" in told[0] and told[-1].startswith("Yes")

    frozen = language_sensitivity(Shifting({OPEN: 2.0}, spread=0.0), scenes())
    assert frozen.swap.effect.value == 1 and frozen.swap.times == np.inf and frozen.floor.times == 1
    assert all(np.isfinite(value) for value in frozen.metrics().values())
    assert "chance does not move them at all" in frozen.describe()


def test_the_seed_decides_everything():
    first, same, other = (
        language_sensitivity(Shifting({OPEN: 2.0}), scenes(), seed=seed).metrics() for seed in (3, 3, 4)
    )
    assert first == same and first != other


@pytest.mark.parametrize(
    ("observations", "options", "said"),
    [
        (scenes(1), {}, "1 observations and 16 samples"),
        (scenes(4), {"samples": 1}, "4 observations and 1 samples"),
        ([*scenes(2), {"place": 0}], {}, "observation 2 has no instruction"),
        ([*scenes(2), {"place": np.nan, "instruction": OPEN}], {}, "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(observations, options, said):
    with pytest.raises(ValueError, match=said):
        language_sensitivity(Shifting({}), observations, **options)


# --- other words ------------------------------------------------------------------------------------------------------


def test_paraphrases_are_polite_grammatical_and_never_say_a_word_twice():
    assert [paraphrase_of("Open the drawer.", turn) for turn in range(5)] == [
        "please open the drawer.",
        "now open the drawer.",
        "just open the drawer.",
        "Open the drawer, thanks.",
        "please open the drawer.",
    ]
    assert paraphrase_of("LED on", 0) == "please LED on"
    for turn in range(8):
        assert paraphrase_of("now, please close it", turn) in (
            "just now, please close it",
            "now, please close it, thanks",
        )


def test_a_users_own_paraphrases_come_first_and_take_turns():
    given = {OPEN: ["pull the drawer out", "slide it open"], CLOSE: "shut it"}
    assert [paraphrase_of(OPEN, turn, given) for turn in range(3)] == [*given[OPEN], given[OPEN][0]]
    assert paraphrase_of(CLOSE, 5, given) == "shut it"
    assert paraphrase_of("press", 0, given) == "please press"


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory, write_demonstrations, bodies) -> TrajectorySource:
    """Four episodes of two tasks, with frames."""
    folder = write_demonstrations(tmp_path_factory.mktemp("demonstrations") / "small", bodies[0], [9, 7, 8, 5])
    return load_trajectories(folder, frames=True)


@pytest.fixture(scope="module")
def build(tiny_fields, bodies) -> Callable[..., ModelSampler]:
    """`(backbone folder, **config fields)` gives an untrained policy for two robots, in which every path counts."""

    def build(folder: Path, **fields: Any) -> ModelSampler:
        reference = describe_backbone(folder, source="hub", name="tiny")
        config = PriorVLAConfig(
            expert={**tiny_fields["expert"], **expert_dims(bodies)},
            fusion_transformer={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
            backbone={key: reference[key] for key in BACKBONE_KEYS},
            backbone_layers=reference["num_layers"],
            vision_hidden_size=reference["vision_hidden_size"],
            text_hidden_size=reference["text_hidden_size"],
            num_inference_steps=4,
            **fields,
        )
        torch.manual_seed(0)
        model = PriorVLAModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        return ModelSampler(model.attach_backbone(folder), PriorVLAProcessor.for_backbone(folder, bodies, chunk_size=6))

    return build


def teach(sampler: ModelSampler, observation: dict, goals: dict[str, float]) -> None:
    """Fits the model to one action for each instruction, in front of one and the same image."""
    model, processor, body = sampler.model, sampler.processor, observation["embodiment"]
    seen = processor(embodiment=body, state=observation["state"], images=observation["images"])
    seen = {key: value.expand(len(goals), *value.shape[1:]) for key, value in seen.items()}
    words = processor(embodiment=body, text=list(goals))
    with torch.no_grad():
        vision, language = model.encode_observation(
            seen["pixel_values"], seen["pixel_attention_mask"], words["input_ids"], words["attention_mask"]
        )
    actions = torch.tensor(list(goals.values()))[:, None, None].expand(seen["action_mask"].shape)
    known = {"state": seen["state"], "embodiment_ids": seen["embodiment_ids"], "action_mask": seen["action_mask"]}
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(140):
        loss = model(actions, **known, vision_features=vision, language_features=language, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def taught(build, tiny_backbone, demonstrations) -> tuple[ModelSampler, list[dict]]:
    """A policy that was taught two tasks, each in all the words it may be given, and what it is asked about."""
    sampler = build(tiny_backbone, fusion="cross")
    observations = draw_observations([demonstrations], sampler.processor, count=4)
    tasks = sorted({observation["instruction"] for observation in observations})
    goals = dict(zip(tasks, (-1.0, 1.0), strict=True))
    goals |= {paraphrase_of(task, turn): goal for task, goal in goals.items() for turn in range(4)}
    teach(sampler, observations[0], goals)
    return sampler, observations


def test_a_policy_that_was_taught_two_tasks_listens_to_which_and_not_to_how(taught):
    sampler, observations = taught
    heard = language_sensitivity(sampler, observations, samples=6)
    assert heard.swap.interval[0] > max(1.2, heard.paraphrase.times, heard.floor.interval[1])
    assert "Yes" in heard.describe()
    assert heard.metrics() == language_sensitivity(sampler, observations, samples=6).metrics()


def test_the_same_policy_with_its_gates_closed_reads_one(taught):
    sampler, observations = taught
    model = copy.deepcopy(sampler.model).attach_backbone(sampler.model.backbone)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.zero_()
    assert set(model.gate_values().values()) == {0.0}
    heard = language_sensitivity(ModelSampler(model, sampler.processor), observations, samples=6)
    for movement in (heard.swap, heard.paraphrase, heard.empty):
        assert movement.times == pytest.approx(1, abs=1e-4)
    assert "No, not measurably" in heard.describe()


def test_a_vision_action_prior_is_deaf_by_construction(build, tiny_backbone, demonstrations):
    sampler = build(tiny_backbone, fusion="cross", language=False)
    observation = draw_observations([demonstrations], sampler.processor, count=1)[0]
    chunks = sampler.sample_chunks(observation, [OPEN, CLOSE, ""], [1, 2])
    assert np.allclose(chunks[0], chunks[1], atol=1e-5) and np.allclose(chunks[0], chunks[2], atol=1e-5)
    assert not np.allclose(chunks[:, 0], chunks[:, 1], atol=1e-2)


HOSTS = {
    "a dual encoder": {"fusion": "latent"},
    "a generative backbone": {"fusion": "gated"},
    "its own tail": {"fusion": "latent", "tail": "backbone"},
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_chunk_is_that_of_its_instruction_and_seed_whatever_it_is_drawn_with(
    build, tiny_backbone, tiny_smolvlm, demonstrations, host
):
    sampler = build(tiny_backbone if host == "a dual encoder" else tiny_smolvlm, **HOSTS[host])
    observation = draw_observations([demonstrations], sampler.processor, count=1)[0]
    texts, seeds = [OPEN, CLOSE, ""], [1, 2, 3]
    chunks = sampler.sample_chunks(observation, texts, seeds)
    assert chunks.shape == (3, 3, 6, 4)
    alone = [[sampler.sample_chunks(observation, [text], [seed])[0, 0] for seed in seeds] for text in texts]
    assert np.allclose(chunks, np.stack([np.stack(row) for row in alone]), atol=1e-4)
    assert not np.allclose(chunks[0], chunks[1], atol=1e-3), "words must matter, or this says nothing"


def test_raw_images_cached_features_and_pixels_of_a_dataset_give_the_same_chunks(
    build, tiny_backbone, demonstrations, bodies, tmp_path
):
    sampler = build(tiny_backbone, fusion="joint")
    windows = TrajectoryDataset([demonstrations], bodies, 6, stride=2)
    taps = sampler.model.config.taps
    parts = (windows, [demonstrations])
    cached = ObservationDataset(*parts, sampler.model.backbone, sampler.processor, tmp_path, taps=taps)
    live = LiveObservationDataset(*parts, sampler.processor)
    episode, step = (int(part) for part in windows.frame_of([6]))
    trajectory = demonstrations.trajectories[episode]
    raw = {
        "embodiment": "small",
        "state": trajectory.states[step],
        "images": {"front": trajectory.frames.read("front", [step])[0]},
    }
    wanted = sampler.sample_chunks(raw, [CLOSE, OPEN], [5, 6])
    for dataset in (cached, live):
        assert np.allclose(sampler.sample_chunks(dataset[6], [CLOSE, OPEN], [5, 6]), wanted, atol=1e-4)


def test_cached_features_do_not_do_where_words_are_read_behind_the_image(
    build, tiny_smolvlm, demonstrations, bodies, tmp_path
):
    sampler = build(tiny_smolvlm, fusion="cross")
    windows = TrajectoryDataset([demonstrations], bodies, 6, stride=9)
    taps = sampler.model.config.taps
    cached = ObservationDataset(
        windows, [demonstrations], sampler.model.backbone, sampler.processor, tmp_path, taps=taps
    )
    with pytest.raises(ValueError, match="feature cache do not hold"):
        sampler.sample_chunks(cached[0], [OPEN], [1])


def test_observations_take_turns_over_tasks_and_a_seed_draws_the_same(build, tiny_backbone, demonstrations):
    processor = build(tiny_backbone).processor
    drawn = draw_observations([demonstrations], processor, count=7, seed=1)
    instructions = [observation["instruction"] for observation in drawn]
    assert len(set(instructions[:2])) == 2 and instructions[2:] == instructions[:-2]
    again = draw_observations([demonstrations], processor, count=7, seed=1)
    for one, same in zip(drawn, again, strict=True):
        assert np.array_equal(one["state"], same["state"]) and np.array_equal(
            one["images"]["front"], same["images"]["front"]
        )
    of_episode = {trajectory.states.tobytes(): trajectory for trajectory in demonstrations.trajectories}
    owners = [
        next(t for t in of_episode.values() if (t.states == observation["state"]).all(axis=1).any())
        for observation in drawn[:4]
    ]
    assert len({owner.episode_index for owner in owners}) == 4, "an episode twice before another of its task was used"


def test_what_cannot_be_sampled_is_refused_with_the_remedy(build, tiny_backbone, demonstrations):
    sampler = build(tiny_backbone)
    observation = draw_observations([demonstrations], sampler.processor, count=1)[0]
    del observation["embodiment"]
    with pytest.raises(ValueError, match=r"which of small, large.*under 'embodiment'"):
        sampler.sample_chunks(observation, [OPEN], [1])
    blind = load_trajectories(demonstrations.root)
    with pytest.raises(ValueError, match="without frames"):
        draw_observations([blind], sampler.processor, count=1)
    with pytest.raises(ValueError, match="attach_backbone"):
        ModelSampler(PriorVLAModel(sampler.model.config), sampler.processor)


# --- policies ---------------------------------------------------------------------------------------------------------


def test_a_deployed_policy_is_asked_as_it_drives(build, tiny_backbone, demonstrations):
    sampler = build(tiny_backbone, fusion="cross")
    observations = draw_observations([demonstrations], sampler.processor, count=3)
    policy = PriorVLAPolicy(sampler.model, sampler.processor, embodiment="small", num_inference_steps=2)
    two_steps = ModelSampler(sampler.model, sampler.processor, num_inference_steps=2)
    wanted = language_sensitivity(two_steps, observations, samples=3).metrics()
    assert language_sensitivity(policy, observations, samples=3).metrics() == wanted
    assert language_sensitivity(sampler, observations, samples=3).metrics() != wanted
    unnamed = [{key: observation[key] for key in ("state", "images", "instruction")} for observation in observations]
    assert language_sensitivity(policy, unnamed, samples=3).metrics() == wanted


def test_an_observation_keeps_the_embodiment_that_it_names(build, tiny_backbone, demonstrations):
    sampler = build(tiny_backbone, fusion="cross")
    observations = draw_observations([demonstrations], sampler.processor, count=2)
    other = PriorVLAPolicy(sampler.model, sampler.processor, embodiment="large")
    wanted = language_sensitivity(sampler, observations, samples=2).metrics()
    assert language_sensitivity(other, observations, samples=2).metrics() == wanted


def test_a_bare_model_is_no_policy_and_the_remedy_is_named(build, tiny_backbone):
    with pytest.raises(TypeError, match=r"a PriorVLAModel is no policy.*ModelSampler\(model, processor\)"):
        language_sensitivity(build(tiny_backbone).model, scenes())
