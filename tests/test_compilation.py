"""Compiled policies: before the first action, equal to the others, and never again once sessions have begun."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from priorvla.deployment.compilation import require_compiler
from priorvla.deployment.evaluate import evaluate_checkpoint
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.serving.serving_options import ServingOptions

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def load(save_policy, tiny_backbone, bodies, tmp_path_factory):
    """`(**arguments)`: a policy with history, of a checkpoint of two bodies."""
    folder = save_policy(tmp_path_factory.mktemp("policy"), bodies, fusion="cross", use_history=True, history_size=4)

    def load(**arguments) -> PriorVLAPolicy:
        return PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone, embodiment="small", **arguments)

    return load


def seen(seed: int, instruction: str) -> dict:
    random = np.random.default_rng(seed)
    pictures = {"front": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)}
    return {"state": random.normal(size=3).astype(np.float32), "images": pictures, "instruction": instruction}


def lives(policy: PriorVLAPolicy) -> list[np.ndarray]:
    """Chunks of what sessions meet: batches of any size, prefixes of any length, words, and a past that grows."""
    sessions = [policy.new_session(seed) for seed in range(4)]
    chunks, words = [], ("open the drawer", "press")
    for step, (size, prefix) in enumerate([(1, 0), (1, 3), (2, 0), (4, 0), (3, 2), (1, 0)]):
        observations = [seen(10 * step + row, words[row % 2]) for row in range(size)]
        prefixes = [chunks[-1][0][:prefix] if row == 0 and prefix else None for row in range(size)]
        chunks.append(policy.predict(sessions[:size], observations, prefixes))
        for session, observation, chunk in zip(sessions, observations, chunks[-1], strict=False):
            policy.remember(session, observation, chunk[0])
    return chunks


@needs_compiler
def test_a_compiled_policy_equals_the_other(load):
    observation = seen(0, "open the drawer")
    expected, own = (load(compile=compiled).predict_chunk(observation) for compiled in (False, True))
    np.testing.assert_allclose(own, expected, atol=1e-5)


@needs_compiler
def test_nothing_is_compiled_after_the_warm_up_whatever_sessions_meet(load, monkeypatch):
    from torch._dynamo.utils import counters

    # the same graphs with the same guards; to make code of them takes minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    expected = lives(load())
    policy = load(compile=True)
    torch._dynamo.reset()
    counters.clear()
    policy.warm_up(4)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 4 and not counters["graph_break"]  # alone or not, with a prefix or without
    for own, other in zip(lives(policy), expected, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.fixture
def quick_compiler(monkeypatch):
    """torch.compile without code being made; its counts."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    return counters["stats"]


@needs_compiler
def test_an_evaluation_compiles_what_it_uses_and_nothing_else(save_policy, tiny_backbone, tmp_path, quick_compiler):
    metaworld_env = pytest.importorskip("priorvla.deployment.environments.metaworld_env")
    pytest.importorskip("metaworld")
    body = metaworld_env.metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))
    options = {"max_episode_steps": 8, "films": 0, "backbone": str(tiny_backbone), "compile": True}
    policy = save_policy(tmp_path / "policy", [body])
    evaluate_checkpoint(str(policy), "metaworld", ["reach"], 1, tmp_path / "evaluation", **options)
    assert quick_compiler["unique_graphs"] == 1  # of one observation, without a prefix


@needs_compiler
def test_a_server_serves_the_policy_compiled(save_policy, bodies, tiny_backbone, tmp_path, monkeypatch):
    pytest.importorskip("websockets")
    serve = pytest.importorskip("priorvla.deployment.serving.serve")
    served = []

    class Server(serve.PolicyServer):
        def __init__(self, policy, **options) -> None:
            served.append(policy)
            super().__init__(policy, **options)

        async def run(self, *given, **options) -> None:
            """Ends at once."""

    monkeypatch.setattr(serve, "PolicyServer", Server)
    policy = str(save_policy(tmp_path / "policy", bodies[:1]))
    for compiled in (True, False):
        serve.serve_checkpoint(ServingOptions(policy, backbone=str(tiny_backbone), compile=compiled))
        assert ("denoise" in vars(served[-1].model.expert)) is served[-1].compiled is compiled


def test_without_a_compiler_the_error_says_what_to_install_before_anything_is_loaded(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler: install one"):
        require_compiler("cpu")
    with pytest.raises(RuntimeError, match="no-such-compiler"):
        ServingOptions("me/policy", compile=True).check()


def test_a_policy_that_is_not_to_be_compiled_is_left_as_it_is(load):
    policy = load()
    assert not policy.compiled and "denoise" not in vars(policy.model.expert)


@needs_compiler
def test_a_copy_of_a_compiled_model_has_weights_of_its_own_and_is_not_compiled(load):
    model = load(compile=True).model
    assert "denoise" in vars(model.expert)
    other = copy.deepcopy(model.expert)
    assert "denoise" not in vars(other) and other.denoise.__self__ is other
