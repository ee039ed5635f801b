"""Closed-loop evaluation on real Meta-World: an expert succeeds, chance fails, and everybody meets the same starts."""

import json
import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import av
import numpy as np
import pytest

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'metaworld'", allow_module_level=True)
from priorvla.deployment.environments import make_environment
from priorvla.deployment.environments.metaworld_env import metaworld_embodiment
from priorvla.deployment.episodes import EpisodeRunner, TrialBlock
from priorvla.deployment.evaluate import evaluate_checkpoint
from priorvla.deployment.evaluation import evaluate_policy, save_films
from priorvla.deployment.policy import RandomPolicy

TASK = "drawer-close"
SHORT = {"max_episode_steps": 10}
BODY = metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))


class ExpertPolicy:
    """The task's scripted expert as a policy: it drives a twin of the simulation that it is evaluated in."""

    embodiment = BODY

    def __init__(self, task: str) -> None:
        self.task = task

    def new_session(self, seed):
        twin = make_environment("metaworld", self.task, render=False)
        twin.reset(seed=seed)
        return twin

    def act(self, sessions, observations):
        actions = [twin.expert_action() for twin in sessions]
        for twin, action in zip(sessions, actions, strict=True):
            twin.step(action)
        return np.stack(actions)


class Witness(RandomPolicy):
    """Random actions; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(BODY)
        self.seen: list[dict] = []

    def act(self, sessions, observations):
        for observation in observations:
            images = {camera: observation["images"][camera] for camera in observation["images"]}
            self.seen.append({**observation, "images": images})
        return super().act(sessions, observations)


@pytest.fixture(scope="module")
def expert():
    return evaluate_policy(ExpertPolicy(TASK), [TASK], trials=2, films_per_task=2)


@pytest.fixture(scope="module")
def chance():
    return evaluate_policy(RandomPolicy(BODY), [TASK], trials=2, films_per_task=1, environment_options=SHORT)


def test_the_expert_solves_every_trial_and_its_result_says_so(expert):
    assert expert.tasks[TASK].outcomes == [True, True]
    assert expert.count() == expert.count([TASK]) == (2, 2)
    content = expert.to_dict()
    assert content["tasks"][TASK]["successes"] == content["overall"]["successes"] == 2
    low, high = content["overall"]["interval"]
    assert 0.3 < low < 0.4 and high == pytest.approx(1)  # Wilson, 2 of 2
    assert content["wall_time_s"] > 0


def test_failures_are_recorded_as_failures(chance):
    assert chance.tasks[TASK].outcomes == [False, False]
    assert chance.count() == (0, 2)


def test_an_episode_ends_with_success_or_with_its_last_step(expert, chance):
    assert len(expert.tasks[TASK].films[0]) < 200 / 4
    assert len(chance.tasks[TASK].films[0]) == 3 + 1  # steps 0, 4, 8, and the end


def test_films_are_pictures_of_the_first_trials(expert, chance):
    assert len(expert.tasks[TASK].films) == 2 and len(chance.tasks[TASK].films) == 1
    film = expert.tasks[TASK].films[0]
    assert film.dtype == np.uint8 and film.shape[1:] == (112, 112, 3)
    assert (film[0] != film[-1]).any()


def test_every_policy_meets_the_same_starts_and_every_trial_and_seed_another(expert, chance):
    first, second = (film[0] for film in expert.tasks[TASK].films)
    np.testing.assert_array_equal(chance.tasks[TASK].films[0][0], first)
    other = evaluate_policy(RandomPolicy(BODY), [TASK], trials=1, seed=1, films_per_task=1, environment_options=SHORT)
    assert (first != second).any()
    assert (other.tasks[TASK].films[0][0] != first).any()


def test_two_processes_give_what_one_gives():
    tasks = [TASK, "reach"]
    options = {"trials": 2, "films_per_task": 2, "environment_options": SHORT}
    alone = evaluate_policy(RandomPolicy(BODY), tasks, **options)
    shared = evaluate_policy(partial(RandomPolicy, BODY), tasks, num_workers=2, **options)
    assert list(shared.tasks) == tasks
    for task in tasks:
        assert shared.tasks[task].outcomes == alone.tasks[task].outcomes
        for one, two in zip(alone.tasks[task].films, shared.tasks[task].films, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_episodes_side_by_side_give_what_they_give_one_after_the_other(num_workers):
    options = {"trials": 5, "films_per_task": 5, "environment_options": SHORT}
    alone = evaluate_policy(RandomPolicy(BODY), [TASK], **options)
    beside = evaluate_policy(partial(RandomPolicy, BODY), [TASK], num_workers=num_workers, batch_size=3, **options)
    assert beside.tasks[TASK].outcomes == alone.tasks[TASK].outcomes
    for one, two in zip(alone.tasks[TASK].films, beside.tasks[TASK].films, strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_trials_of_one_task_are_shared_by_processes_in_the_order_of_their_starts(monkeypatch):
    options = {"trials": 5, "films_per_task": 3, "environment_options": SHORT}
    alone = evaluate_policy(RandomPolicy(BODY), [TASK], **options)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    shared = evaluate_policy(partial(RandomPolicy, BODY), [TASK], num_workers=2, **options)
    assert dict(os.environ) == before
    assert shared.tasks[TASK].outcomes == alone.tasks[TASK].outcomes
    assert len(shared.tasks[TASK].films) == len(alone.tasks[TASK].films) == 3
    for one, two in zip(alone.tasks[TASK].films, shared.tasks[TASK].films, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_trial_does_not_depend_on_the_trials_before_it(expert):
    # each in an environment of its own
    for trial, film in enumerate(expert.tasks[TASK].films):
        block = TrialBlock("metaworld", {}, TASK, 0, (trial,), films=2)
        episode = next(EpisodeRunner(ExpertPolicy(TASK)).run(block, [trial]))
        assert episode.success and (episode.film == film).all()


def test_a_policy_that_cannot_be_made_in_a_process_says_why():
    with pytest.raises(ValueError, match="'metaworld_sawyer' has no action statistics"):
        evaluate_policy(partial(RandomPolicy, metaworld_embodiment()), [TASK], num_workers=2)
    with pytest.raises(ValueError, match="num_workers=2 needs a function that makes the policy"):
        evaluate_policy(RandomPolicy(BODY), [TASK], num_workers=2)


def test_blank_images_are_black_and_nothing_else_is_changed():
    seeing, blind = Witness(), Witness()
    for witness, blank in ((seeing, False), (blind, True)):
        evaluate_policy(witness, [TASK], trials=1, blank_images=blank, environment_options=SHORT)
    assert len(seeing.seen) == len(blind.seen) == 10
    for open_eyed, closed in zip(seeing.seen, blind.seen, strict=True):
        assert open_eyed.keys() == closed.keys() and open_eyed["images"].keys() == closed["images"].keys()
        assert open_eyed["instruction"] == closed["instruction"]
        np.testing.assert_array_equal(open_eyed["state"], closed["state"])
        picture, black = open_eyed["images"]["corner2"], closed["images"]["corner2"]
        assert picture.any() and not black.any()
        assert picture.shape == black.shape and picture.dtype == black.dtype


def test_a_policy_of_another_body_is_refused_by_both_names(bodies):
    with pytest.raises(ValueError, match=r"drives 'small', metaworld has 'metaworld_sawyer'"):
        evaluate_policy(RandomPolicy(bodies[0]), [TASK])


def test_a_robot_may_have_another_name_in_the_checkpoint_but_no_other_dims(bodies):
    mine = RandomPolicy(replace(BODY, name="my_arm"))
    again = evaluate_policy(mine, [TASK], trials=1, embodiment="my_arm", environment_options=SHORT)
    assert again.count()[1] == 1
    with pytest.raises(ValueError, match="drives 'my_arm', metaworld has 'metaworld_sawyer'"):
        evaluate_policy(mine, [TASK], trials=1, environment_options=SHORT)
    with pytest.raises(ValueError, match=r"'small' has \d+ state dims .* it is another robot"):
        evaluate_policy(RandomPolicy(bodies[0]), [TASK], trials=1, embodiment="small")


def test_of_several_bodies_the_simulators_is_driven_unless_another_name_is_given(save_policy, tiny_backbone, tmp_path):
    arms = [BODY, replace(BODY, name="my_arm")]
    checkpoint = save_policy(tmp_path / "policy", arms)
    options = {"trials": 1, "max_episode_steps": 3, "films": 0, "backbone": str(tiny_backbone)}
    for name in (None, "my_arm"):
        folder = tmp_path / f"report-{name}"
        options |= {"embodiments": name and [name], "output_dir": folder}
        evaluate_checkpoint(str(checkpoint), "metaworld", [TASK], **options)
        robots = json.loads((folder / "report.json").read_text())["robots"]
        assert robots["metaworld_sawyer"]["embodiment"] == (name or "metaworld's own")


def test_unknown_tasks_and_simulators_are_refused():
    with pytest.raises(ValueError, match="'drawer-opne'"):
        evaluate_policy(RandomPolicy(BODY), ["drawer-opne"])
    with pytest.raises(ValueError, match="'reach' is named twice"):
        evaluate_policy(RandomPolicy(BODY), ["reach", "reach"])
    with pytest.raises(ValueError, match="no simulator 'matrix'"):
        evaluate_policy(RandomPolicy(BODY), [TASK], environment="matrix")


def test_films_are_saved_under_task_trial_and_outcome(expert, chance, tmp_path):
    files = save_films(expert, tmp_path / "expert")[TASK] + save_films(chance, tmp_path / "chance")[TASK]
    names = [file.stem for file in files]
    assert names == [f"{TASK}-0-success", f"{TASK}-1-success", f"{TASK}-0-failure"]
    if files[0].suffix == ".mp4":
        with av.open(str(files[0])) as container:
            assert sum(1 for _ in container.decode(video=0)) == len(expert.tasks[TASK].films[0])


def test_a_checkpoints_report_is_for_programs_and_for_people(save_policy, tiny_backbone, tmp_path):
    checkpoint = save_policy(tmp_path / "policy", [BODY])
    options = {"env": "metaworld", "tasks": [TASK], "trials": 1, "output_dir": tmp_path / "report"}
    results = evaluate_checkpoint(str(checkpoint), **options, max_episode_steps=8, backbone=str(tiny_backbone))
    result = results["metaworld_sawyer"]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    successes, trials = result.count()
    for entry in (report["tasks"][TASK], report["overall"], report["robots"]["metaworld_sawyer"]["overall"]):
        assert (entry["successes"], entry["trials"]) == (successes, trials) == (successes, 1)
        low, high = entry["interval"]
        assert 0 <= low < high <= 1
    assert report["tasks"][TASK]["outcomes"] == result.tasks[TASK].outcomes
    assert report["checkpoint"] == "policy"
    assert report["kind"] == "evaluation" and report["seed"] == 0 and report["max_episode_steps"] == 8
    assert {"priorvla", "torch", "transformers", "diffusers"} <= report["versions"].keys()
    page = (tmp_path / "report" / "report.html").read_text()
    assert str(tmp_path) not in page and str(tmp_path) not in json.dumps(report)
    assert TASK in page and "<video" in page and "http" + "://" not in page.replace("http://www.w3.org", "")
    assert len(list((tmp_path / "report" / "films").iterdir())) == 1
    (tmp_path / "report" / "trials.jsonl").unlink()
    with pytest.raises(ValueError, match="already has a report of something else"):
        evaluate_checkpoint(str(checkpoint), **options)
    with pytest.raises(ValueError, match="--trials 0 must be at least 1"):
        evaluate_checkpoint(str(checkpoint), **{**options, "trials": 0})
    with pytest.raises(ValueError, match="metaworld knows no 'robot'"):
        evaluate_checkpoint(
            str(checkpoint), **{**options, "output_dir": tmp_path / "x"}, environment_options={"robot": 1}
        )
    assert not (tmp_path / "x").exists()
