"""The robot side: sessions that do not notice each other, chunks that are executed in part, and what is remembered."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.embodiment import Embodiment, load_embodiments
from priorvla.deployment.action_limits import ActionLimits
from priorvla.deployment.policy import PriorVLAPolicy, RandomPolicy
from priorvla.modeling_priorvla.backbone_features import LanguageFeatures
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

HISTORY = 4


@pytest.fixture(scope="module")
def checkpoint(save_policy, tmp_path_factory):
    random = np.random.default_rng(0)
    bodies = [
        Embodiment(
            name=name,
            action_names=[f"a{i}" for i in range(action_dim)],
            state_names=[f"s{i}" for i in range(state_dim)],
            control_rate=10.0,
            cameras=["front"],
        ).with_statistics(random.normal(size=(50, state_dim)), random.normal(size=(50, action_dim)))
        for name, action_dim, state_dim in (("small", 4, 3), ("large", 7, 5))
    ]
    return save_policy(tmp_path_factory.mktemp("policy"), bodies, use_history=True, history_size=HISTORY)


@pytest.fixture
def make_policy(checkpoint, tiny_backbone):
    def make(**arguments) -> PriorVLAPolicy:
        arguments = {"embodiment": "small", "execute_steps": 3, **arguments}
        return PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, **arguments)

    return make


@pytest.fixture
def policy(make_policy):
    return make_policy()


def episode(seed: int, steps: int = 8, instruction: str = "open the drawer") -> list[dict]:
    """What a robot of 3 state dims sees in `steps` steps."""
    random = np.random.default_rng(seed)
    return [
        {
            "state": random.normal(size=3).astype(np.float32),
            "images": {"front": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)},
            "instruction": instruction,
        }
        for _ in range(steps)
    ]


def alone(policy: PriorVLAPolicy, seen: list[dict], seed: int) -> np.ndarray:
    session = policy.new_session(seed)
    return np.stack([policy.act([session], [observation])[0] for observation in seen])


def count_calls(module: torch.nn.Module) -> list:
    """A list that grows by one with every call of `module`."""
    calls: list = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


def test_an_action_has_the_robots_dims_in_its_own_units(policy):
    action = policy.select_action(episode(0)[0])
    assert action.shape == (4,) and action.dtype == np.float32
    session = policy.new_session(0)
    noise = torch.zeros(1, 6, 7)
    noise[..., :4] = torch.randn(6, 4, generator=session.generator)  # of its own dims only
    body, inputs = policy.embodiment, episode(0)[0]
    batch = policy.processor(
        embodiment="small", state=inputs["state"], images=inputs["images"], text=inputs["instruction"]
    )
    chunk = policy.model.sample_actions(**batch, noise=noise)
    np.testing.assert_allclose(action, body.denormalize_actions(chunk[0, 0, :4]), atol=1e-5)


@pytest.fixture(scope="module")
def relative_checkpoint(save_policy, tmp_path_factory):
    """A body of 3 + 3 dims that learns its two joints relative to the state at the chunk's first step."""
    names = ["a", "b", "grip"]
    body = Embodiment("small", names, names, 10.0, gripper_dims=[2], cameras=["front"]).learning("relative")
    random = np.random.default_rng(0)
    body = body.with_statistics(random.normal(size=(50, 3)), random.normal(size=(50, 6, 3)))
    folder = tmp_path_factory.mktemp("relative")
    return save_policy(folder, [body], use_history=True, history_size=HISTORY)


def test_a_relative_chunk_is_executed_from_the_state_in_which_it_was_predicted(relative_checkpoint, tiny_backbone):
    def actions(seen: list[dict]) -> np.ndarray:
        policy = PriorVLAPolicy.from_pretrained(relative_checkpoint, backbone=tiny_backbone, execute_steps=3)
        return np.stack([policy.select_action(observation) for observation in seen])

    seen = episode(0, steps=4)
    expected = actions(seen)
    later = [seen[0], *({**observation, "state": np.full(3, 50.0, np.float32)} for observation in seen[1:3]), seen[3]]
    np.testing.assert_array_equal(actions(later)[:3], expected[:3])
    policy = PriorVLAPolicy.from_pretrained(relative_checkpoint, backbone=tiny_backbone, execute_steps=3)
    chunk = policy.predict_chunk(seen[0])
    learned = policy.embodiment.learned_actions(chunk, seen[0]["state"])
    np.testing.assert_allclose(learned[:, :2] + seen[0]["state"][:2], chunk[:, :2], atol=1e-5)
    np.testing.assert_allclose(chunk[:3], expected[:3], atol=1e-6)


def test_random_actions_of_a_relative_body_start_from_the_observed_state(relative_checkpoint):
    (body,) = load_embodiments(relative_checkpoint)
    policy = RandomPolicy(body)
    here, far = (policy.act([policy.new_session(0)], [{"state": np.full(3, x)}])[0] for x in (0.0, 100.0))
    np.testing.assert_allclose(far - here, [100, 100, 0], atol=1e-4)


def test_two_interleaved_episodes_are_each_as_if_alone_to_the_bit(policy):
    one, two = episode(1), episode(2, instruction="close the door")
    expected = alone(policy, one, seed=1), alone(policy, two, seed=2)
    first, second = policy.new_session(1), policy.new_session(2)
    actions = [(policy.act([first], [a])[0], policy.act([second], [b])[0]) for a, b in zip(one, two, strict=True)]
    np.testing.assert_array_equal([a for a, _ in actions], expected[0])
    np.testing.assert_array_equal([b for _, b in actions], expected[1])
    assert not np.allclose(*expected)


def test_a_batch_of_episodes_at_different_moments_equals_one_by_one(policy):
    one, two = episode(1), episode(2, instruction="close the door")
    expected = alone(policy, one, seed=1), alone(policy, two, seed=2)
    first, second = policy.new_session(1), policy.new_session(2)
    actions = [policy.act([first], [one[0]])[0]]  # a step ahead, so that the two are seldom predicted together
    for ahead, behind, wanted in zip(one[1:], two, expected[1], strict=False):
        both = policy.act([first, second], [ahead, behind])
        actions.append(both[0])
        np.testing.assert_allclose(both[1], wanted, atol=1e-5)
    np.testing.assert_allclose(actions, expected[0], atol=1e-5)
    fresh = [policy.new_session(1), policy.new_session(2)]
    together = np.stack([policy.act(fresh, pair) for pair in zip(one, two, strict=True)], axis=1)
    np.testing.assert_allclose(together, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_actions_and_another_gives_others(policy):
    seen = episode(3)
    np.testing.assert_array_equal(alone(policy, seen, seed=5), alone(policy, seen, seed=5))
    assert not np.allclose(alone(policy, seen, seed=5), alone(policy, seen, seed=6))


def test_the_model_is_asked_only_when_the_queue_is_empty(policy):
    calls, seen = count_calls(policy.model.fusion), episode(4, steps=7)
    counts = []
    for observation in seen:
        policy.select_action(observation)
        counts.append(len(calls))
    assert counts == [1, 1, 1, 2, 2, 2, 3]


def test_the_first_steps_of_a_chunk_are_executed_in_their_order(policy):
    seen = episode(4)
    chunk = policy.predict_chunk(seen[0])
    assert chunk.shape == (6, 4)
    policy.reset()
    executed = [policy.select_action(observation) for observation in seen[:3]]
    np.testing.assert_array_equal(executed, chunk[:3])


def test_half_a_chunk_is_executed_unless_told_otherwise(make_policy):
    assert make_policy(execute_steps=None).execute_steps == 3
    assert make_policy(execute_steps=6).execute_steps == 6


def test_to_predict_a_chunk_leaves_the_queue_alone(policy):
    seen = episode(5)
    expected = [policy.select_action(observation) for observation in seen[:3]]
    policy.reset()
    first = policy.select_action(seen[0])
    policy.predict_chunk(seen[5])
    np.testing.assert_array_equal([first, policy.select_action(seen[1]), policy.select_action(seen[2])], expected)


def test_chunks_that_overlap_are_averaged_the_older_the_heavier(make_policy):
    policy, seen = make_policy(execute_steps=None, ensemble=0.5), episode(3)
    chunks, predict = [], policy.predict

    def note(*arguments):
        chunks.append(predict(*arguments)[0])
        return chunks[-1][None]

    policy.predict = note
    actions = [policy.select_action(observation) for observation in seen]
    assert len(chunks) == len(seen)  # one a step
    np.testing.assert_array_equal(actions[0], chunks[0][0])
    weights = np.exp(-0.5 * np.arange(3))
    said = weights[0] * chunks[0][2] + weights[1] * chunks[1][1] + weights[2] * chunks[2][0]
    np.testing.assert_allclose(actions[2], said / weights.sum(), rtol=1e-5)
    steps = len(chunks[0])
    assert len(seen) > steps and not np.allclose(actions[steps], chunks[steps][0])
    policy.reset()
    assert not policy._session.chunks


def test_averaging_leaves_no_steps_to_execute_without_looking(make_policy):
    with pytest.raises(ValueError, match=r"execute_steps=3 with ensemble=0\.01"):
        make_policy(ensemble=0.01)


def test_a_policy_keeps_to_its_limits(make_policy):
    policy = make_policy(limits=ActionLimits(low=-0.05, high=[0.05, 0.1, None, None]))
    actions = np.stack([policy.select_action(observation) for observation in episode(3)])
    assert actions.min() >= -0.051 and actions[:, 0].max() <= 0.051 and actions[:, 1].max() <= 0.101
    assert actions.max() > 0.101


def test_an_action_that_is_refused_costs_no_other_session_an_action_and_its_own_looks_again(policy):
    seen = episode(3)
    expected = alone(policy, seen[:3], seed=1)
    fine, broken = policy.new_session(1), policy.new_session(2)
    actions = [policy.act([fine, broken], [seen[0]] * 2)[0]]
    broken.queue[0][:] = np.nan
    with pytest.raises(ValueError, match="not finite in a0"):
        policy.act([fine, broken], [seen[1]] * 2)
    actions += [policy.act([fine, broken], [own] * 2)[0] for own in seen[1:3]]
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_a_robot_that_is_held_stays_where_it_was_told_to_be_and_looks_anew(policy):
    calls, seen = count_calls(policy.model.fusion), episode(3)
    with pytest.raises(ValueError, match="no command yet"):
        policy.hold()
    last = policy.select_action(seen[0])
    np.testing.assert_array_equal(policy.hold(), last)
    assert not np.array_equal(policy.select_action(seen[1]), last) and len(calls) == 2


@pytest.mark.parametrize("images", [{}, {"typo": np.zeros((28, 28, 3), np.uint8)}, {"front": None}], ids=str)
def test_a_robot_is_not_driven_blindly(policy, images):
    with pytest.raises(ValueError, match="sees with front, the observation has no picture of front"):
        policy.select_action({**episode(3)[0], "images": images})


def test_actions_that_count_from_a_chunks_start_are_given_as_chunks_alone(save_policy, bodies, tiny_backbone, tmp_path):
    kinds = ["relative"] * 4
    folder = save_policy(tmp_path, [replace(bodies[0], action_kinds=kinds, learned_kinds=kinds)])
    policy = PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone)
    assert policy.predict_chunk(episode(3)[0]).shape == (6, 4)
    with pytest.raises(ValueError, match=r"actions of 'small' were recorded relative .* predict_chunk yourself"):
        policy.select_action(episode(3)[0])


def test_to_warm_up_changes_no_episode(make_policy):
    seen = episode(3)
    cold, warm = make_policy(), make_policy()
    assert warm.warm_up() > 0
    np.testing.assert_array_equal(alone(cold, seen, 0), alone(warm, seen, 0))


def test_the_past_is_padded_in_front_and_never_longer_than_the_window(make_policy):
    policy = make_policy(execute_steps=1)
    pasts = []
    policy.model.encoder.register_forward_pre_hook(lambda _, inputs: pasts.append(inputs))
    seen = episode(6, steps=6)
    executed = [policy.select_action(observation) for observation in seen]
    body = policy.embodiment
    for step, (states, actions, _, mask) in enumerate(pasts):
        known = min(step, HISTORY)
        assert mask[0, :, 0].tolist() == [False] * (HISTORY - known) + [True] * known
        for tensor, values in (
            (states[..., :3], [body.normalize_state(observation["state"]) for observation in seen]),
            (actions[..., :4], [body.normalize_actions(action) for action in executed]),
        ):
            past = np.concatenate([np.zeros((HISTORY - known, tensor.shape[-1])), *[v[None] for v in values[:step]]])
            np.testing.assert_allclose(tensor[0], past[-HISTORY:], atol=1e-6)
    assert len(pasts) == 6


def test_the_past_changes_what_is_done(policy):
    seen = episode(7)
    one, two = policy.new_session(0), policy.new_session(0)
    two.states.append(seen[1]["state"])
    two.actions.append(np.ones(4, dtype=np.float32))
    assert not np.allclose(policy.act([one], [seen[0]]), policy.act([two], [seen[0]]))


def test_reset_forgets_queue_past_and_noise(policy):
    seen = episode(8)
    first = [policy.select_action(observation) for observation in seen[:5]]
    policy.reset()
    np.testing.assert_array_equal([policy.select_action(observation) for observation in seen[:5]], first)


def test_an_instruction_is_encoded_once(policy):
    calls = count_calls(policy.model.backbone.model.text_model)
    for observation in episode(9, steps=7):
        policy.select_action(observation)
    assert len(calls) == 1
    policy.reset()
    policy.select_action(episode(9)[0])
    assert len(calls) == 1
    policy.reset()
    policy.select_action(episode(9, instruction="press the red button")[0])
    assert len(calls) == 2


def test_images_instruction_and_state_each_change_an_action(policy):
    base = episode(10)[0]
    other = {**episode(11)[0], "instruction": "close the door"}
    expected = policy.act([policy.new_session(0)], [base])
    for key in base:
        assert not np.allclose(policy.act([policy.new_session(0)], [{**base, key: other[key]}]), expected), key


def test_which_body_is_driven_must_be_said_where_a_checkpoint_has_several(make_policy):
    assert make_policy(embodiment="large").embodiment.action_dim == 7
    with pytest.raises(ValueError, match=r"no embodiment was given.*small, large"):
        make_policy(embodiment=None)
    with pytest.raises(ValueError, match=r"'octopus' is unknown.*small, large"):
        make_policy(embodiment="octopus")


def test_the_only_body_of_a_checkpoint_needs_no_name(save_policy, bodies, tiny_backbone, tmp_path):
    folder = save_policy(tmp_path, bodies[:1])
    assert PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone).embodiment.name == "small"


@pytest.mark.parametrize("steps", [0, -1, 7])
def test_more_steps_than_a_chunk_has_or_none_cannot_be_executed(make_policy, steps):
    with pytest.raises(ValueError, match=rf"execute_steps={steps} must be between 1 and the chunk's 6"):
        make_policy(execute_steps=steps)


def test_a_policy_without_eyes_is_refused_when_it_is_made(checkpoint):
    with pytest.raises(ValueError, match=r"no backbone is attached.*backbone=<folder>"):
        PriorVLAPolicy.from_pretrained(checkpoint, backbone=None, embodiment="small")


def test_random_actions_stay_within_the_range_of_the_data_and_fill_it(bodies):
    policy = RandomPolicy(bodies[0])
    session = policy.new_session(0)
    actions = np.concatenate([policy.act([session], [{}]) for _ in range(2000)])
    low, high = bodies[0].action_statistics.min, bodies[0].action_statistics.max
    assert actions.shape == (2000, 4) and (actions >= np.float32(low)).all() and (actions <= np.float32(high)).all()
    assert (actions.min(0) < np.asarray(low) * 0.95).all() and (actions.max(0) > np.asarray(high) * 0.95).all()
    np.testing.assert_array_equal(policy.act([policy.new_session(0)], [{}])[0], actions[0])


def test_random_actions_need_statistics():
    with pytest.raises(ValueError, match="'bare' has no action statistics"):
        RandomPolicy(Embodiment("bare", ["a"], ["s"], 10.0))


# --- a backbone that reads behind the image, and other hosts ----------------------------------------------------------


@pytest.fixture(scope="module")
def make_seeing(save_policy, bodies, tiny_backbone, tiny_smolvlm, tmp_path_factory):
    """`(backbone, **fields)`: a policy of another host than `latent`, saved once."""
    saved: dict = {}

    def make(backbone="tiny_smolvlm", **fields) -> PriorVLAPolicy:
        folder = {"tiny_smolvlm": tiny_smolvlm, "tiny_backbone": tiny_backbone}[backbone]
        key = (backbone, *fields.items())
        if key not in saved:
            saved[key] = save_policy(tmp_path_factory.mktemp("seeing"), bodies, backbone_folder=folder, **fields)
        return PriorVLAPolicy.from_pretrained(saved[key], backbone=folder, embodiment="small", execute_steps=3)

    return make


GENERATIVE = {
    "latent": {"fusion": "latent"},
    "its own tail": {"fusion": "latent", "tail": "backbone"},
    "its own tail, with a past": {"fusion": "latent", "tail": "backbone", "use_history": True, "history_size": 4},
    "cross": {"fusion": "cross"},
    "joint": {"fusion": "joint"},
    "gated": {"fusion": "gated"},
}


@pytest.mark.parametrize("host", GENERATIVE)
def test_a_generative_backbone_reads_each_instruction_behind_its_own_image(make_seeing, host):
    policy = make_seeing(**GENERATIVE[host])
    one, two = episode(1, steps=4), episode(2, steps=4, instruction="close the door")
    expected = np.stack([alone(policy, one, seed=1), alone(policy, two, seed=2)])
    sessions = [policy.new_session(1), policy.new_session(2)]
    together = np.stack([policy.act(sessions, pair) for pair in zip(one, two, strict=True)], axis=1)
    np.testing.assert_allclose(together, expected, atol=1e-4)
    swapped = [{**observation, "instruction": "close the door"} for observation in one]
    assert not np.allclose(alone(policy, swapped, seed=1), expected[0], atol=1e-4)


@pytest.mark.parametrize("backbone", ["tiny_backbone", "tiny_smolvlm"])
def test_a_vision_action_prior_drives_a_robot_whatever_it_is_told(make_seeing, backbone):
    policy = make_seeing(backbone, fusion="gated", language=False)
    seen = episode(3, steps=4)
    expected = alone(policy, seen, seed=1)
    told = [{**observation, "instruction": "close the door"} for observation in seen]
    np.testing.assert_array_equal(alone(policy, told, seed=1), expected)
    silent = [{key: observation[key] for key in ("state", "images")} for observation in seen]
    np.testing.assert_array_equal(alone(policy, silent, seed=1), expected)
    seen[0]["images"]["front"] = 255 - seen[0]["images"]["front"]
    assert not np.allclose(alone(policy, seen, seed=1), expected, atol=1e-4)


@pytest.mark.parametrize("fusion", ["cross", "joint", "gated"])
def test_a_seeing_host_hears_every_instruction_of_a_batch(make_seeing, fusion):
    policy = make_seeing("tiny_backbone", fusion=fusion)
    seen = episode(4)[0]
    told = [{**seen, "instruction": text} for text in ("open the drawer", "press the red button now")]
    both = policy.act([policy.new_session(0), policy.new_session(0)], told)
    one_by_one = [policy.act([policy.new_session(0)], [observation])[0] for observation in told]
    np.testing.assert_allclose(both, one_by_one, atol=1e-5)
    assert not np.allclose(*both, atol=1e-4)


# --- instructions that are kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["tiny_backbone", "tiny_smolvlm"])
def test_a_vision_action_prior_encodes_no_instruction_that_it_is_given(make_seeing, backbone, monkeypatch):
    policy, encoded = make_seeing(backbone, fusion="gated", language=False), []
    monkeypatch.setattr(policy.model.backbone, "encode_language", lambda *words, **_: encoded.append(words))
    policy.select_action(episode(3)[0])
    assert not encoded


def test_an_instruction_that_is_kept_keeps_no_graph_of_a_trained_backbone(save_policy, bodies, tiny_backbone, tmp_path):
    folder = save_policy(tmp_path, bodies[:1], fusion="gated")
    trained = PriorVLAModel(PriorVLAConfig.from_pretrained(folder, backbone_training="full"))
    trained.attach_backbone(tiny_backbone)
    policy, graphs = PriorVLAPolicy(trained, PriorVLAProcessor.from_pretrained(folder)), []
    assert any(parameter.requires_grad for parameter in policy.model.backbone.model.text_model.parameters())
    policy.model.backbone.model.text_model.register_forward_hook(
        lambda _, inputs, output: graphs.append(output.last_hidden_state.requires_grad)
    )
    policy.select_action(episode(0)[0])
    assert graphs == [False]


def test_an_instruction_is_encoded_again_when_the_model_has_moved_to_another_device(policy, monkeypatch):
    encoded, heard, seen = [], [], episode(0)[0]
    policy.predict_chunk(seen)

    # the meta device is there on every machine, but computes nothing
    def encode_language(_, input_ids, attention_mask):
        encoded.append(input_ids.device.type)
        hidden_states = torch.zeros(1, 1, input_ids.shape[1], 8, device=input_ids.device)
        return LanguageFeatures(hidden_states, attention_mask, None)

    def sample_actions(language_features, noise, **_):
        heard.append(language_features.hidden_states.device.type)
        return torch.zeros(noise.shape)

    monkeypatch.setattr(policy.model.backbone, "encode_language", encode_language)
    monkeypatch.setattr(policy.model, "sample_actions", sample_actions)
    policy.model.to("meta")
    policy.predict_chunk(seen)
    policy.predict_chunk(seen)
    assert heard == ["meta", "meta"] and encoded == ["meta"]
