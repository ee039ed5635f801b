"""The tabletop: what may be asked for, what training never hears, and a scene in which its expert does all of it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from priorvla.cli import main
from priorvla.deployment.collect import load_collection_summary
from priorvla.deployment.demonstrations import DemonstrationSettings, record_demonstration
from priorvla.deployment.environments.registry import expand_tasks, list_tasks
from priorvla.deployment.environments.tabletop_grammar import (
    COLOURS,
    CONTAINERS,
    KINDS,
    PARAPHRASES,
    SHAPES,
    SIDES,
    TEMPLATES,
    Container,
    Request,
    Thing,
    all_things,
    chained,
    wording,
)
from priorvla.deployment.environments.tabletop_layouts import (
    CELLS,
    TEST_SUITES,
    TRAINING_SUITES,
    Episode,
    Placed,
    all_requests,
    blind_chance,
    draw_episode,
    implied_request,
    possible_requests,
)
from priorvla.training.data.readers import load_trajectories

needs_simulator = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra 'tabletop'")


def episodes(suite: str, count: int = 300) -> list[Episode]:
    random = np.random.default_rng(5)
    return [draw_episode(suite, KINDS[index % len(KINDS)], random) for index in range(count)]


def noun(request: Request) -> str:
    return request.place if isinstance(request.place, str) else request.place.noun


def words(suite: str) -> set[str]:
    return {word for each in episodes(suite) for word in each.instruction.lower().strip(".").replace(",", "").split()}


def test_training_hears_every_colour_shape_and_place_and_never_a_combination_that_is_held_out() -> None:
    for suite in TRAINING_SUITES:
        asked = [request for each in episodes(suite, 600) for request in each.requests]
        assert all(request.thing.seen and request.place_seen for request in asked)
        assert {request.thing.colour for request in asked} == set(COLOURS)
        assert {request.thing.shape for request in asked} == set(SHAPES)
        assert {noun(request) for request in asked} == {*CONTAINERS, *SIDES}
        assert {request.thing for request in asked} == {thing for thing in all_things() if thing.seen}
        assert all(thing.seen for each in episodes(suite) for thing in each.layout.things)


@pytest.mark.parametrize(
    ("suite", "thing_seen", "place_seen"),
    [
        ("seen", True, True),
        ("unseen-object", False, True),
        ("unseen-place", True, False),
        ("unseen-both", False, False),
        ("paraphrase", True, True),
        ("chained", True, True),
    ],
)
def test_a_test_suite_holds_out_what_its_name_says_and_nothing_else(
    suite: str, thing_seen: bool, place_seen: bool
) -> None:
    for each in episodes(suite):
        assert {request.thing.seen for request in each.requests} == {thing_seen}
        assert {request.place_seen for request in each.requests} == {place_seen}
        assert {thing.seen for thing in each.layout.things} == {thing_seen}  # a strange thing does not give itself away


def test_only_paraphrases_have_words_that_training_does_not_hear() -> None:
    heard = words("many-instructions")
    for suite in TEST_SUITES:
        strange = words(suite) - heard
        assert strange <= ({"then"} if suite == "chained" else strange if suite == "paraphrase" else set()), suite
    assert words("paraphrase") - heard
    assert not {text for own in PARAPHRASES.values() for text in own} & {t for own in TEMPLATES.values() for t in own}


def test_neither_the_colour_nor_the_shape_alone_says_which_thing_is_meant() -> None:
    for suite in ("many-instructions", "seen", "unseen-object"):
        pairs = Counter(
            (one.colour == other.colour, one.shape == other.shape)
            for one, other in (each.layout.things for each in episodes(suite))
        )
        assert pairs[True, True] == 0  # no scene has the same thing twice
        assert min(pairs[True, False], pairs[False, True]) > 15, suite


def test_a_layout_of_one_instruction_implies_it_and_one_of_many_does_not() -> None:
    for each in episodes("one-instruction"):
        layout = each.layout
        assert each.requests == (implied_request(layout),)
        one, other, left, right, stone = layout.places
        swapped = replace(
            layout,
            things=layout.things[::-1],
            containers=layout.containers[::-1],
            places=(other, one, right, left, stone),
        )
        assert implied_request(swapped) == each.requests[0]  # which one is named first is no matter
    many = episodes("many-instructions", 1000)
    implied = np.mean([each.requests[0] == implied_request(each.layout) for each in many])
    assert implied == pytest.approx(blind_chance("many-instructions"), abs=0.05)


def test_what_one_instruction_implies_is_the_nearer_thing_and_the_tables_place() -> None:
    layout = episodes("seen")[0].layout
    cube, ball = Thing("green", "cube"), Thing("blue", "ball")
    bowl, mat = Container("white", "bowl"), Container("black", "mat")
    far, near, left, right = (Placed(x, y, 0.0) for x, y in ((0.0, 0.54), (0.01, 0.69), (0.15, 0.54), (-0.15, 0.69)))
    scene = replace(layout, things=(cube, ball), containers=(bowl, mat), places=(far, near, left, right, right))
    for table, place in ((0, bowl), (1, bowl), (2, "left"), (3, "right")):
        assert implied_request(replace(scene, table=table)) == Request(ball, place)
    turned = replace(scene, table=0, places=(near, far, right, left, right))
    assert implied_request(turned) == Request(cube, mat)
    column = replace(scene, table=0, places=(far, near, replace(far, x=0.15), replace(near, x=0.14), right))
    assert implied_request(column) == Request(ball, mat)  # of one column the nearer one


def test_the_two_things_stand_in_different_rows() -> None:
    rows = {y for _, y in CELLS}
    for suite in (*TRAINING_SUITES, *TEST_SUITES):
        for each in episodes(suite):
            nearest = {min(rows, key=lambda row: abs(row - place.y)) for place in each.layout.places[:2]}
            assert nearest == rows


@pytest.mark.parametrize(("suite", "share"), [("mostly-one-instruction", 0.1), ("usually-one-instruction", 0.3)])
def test_a_share_of_the_scenes_are_exceptions(suite: str, share: float) -> None:
    drawn = episodes(suite, 4000)
    strange = [each for each in drawn if each.requests[0] != implied_request(each.layout)]
    by_chance = blind_chance("many-instructions")  # exceptions may be what is implied
    assert len(strange) / len(drawn) == pytest.approx(share * (1 - by_chance), abs=0.015)
    assert len(strange) / len(drawn) == pytest.approx(1 - blind_chance(suite), abs=0.015)
    assert all(each.requests[0] in possible_requests(suite, each.layout) for each in drawn)


def test_all_kinds_of_training_have_the_same_layouts() -> None:
    shares = []
    for suite in TRAINING_SUITES:
        drawn = episodes(suite, 2000)
        counted = Counter(thing for each in drawn for thing in each.layout.things)
        counted.update(container.noun for each in drawn for container in each.layout.containers)
        counted.update(each.layout.table for each in drawn)
        shares.append({key: count / len(drawn) for key, count in counted.items()})
    assert shares[0].keys() == shares[1].keys() == shares[2].keys()
    assert max(abs(shares[0][key] - other[key]) for key in shares[0] for other in shares) < 0.08


def test_test_scenes_always_allow_several_instructions_in_equal_shares() -> None:
    for suite in TEST_SUITES:
        for each in episodes(suite):
            possible = possible_requests(suite, each.layout)
            assert len(possible) > 1 and each.requests[0] in possible
    assert blind_chance("seen") == pytest.approx(1 / 6, abs=0.03)
    assert blind_chance("unseen-both") <= 0.5
    cube, ball = Thing("green", "cube"), Thing("blue", "ball")
    containers = (Container("white", "plate"), Container("black", "mat"))
    random, chosen = np.random.default_rng(0), Counter[Request]()
    for each in (draw_episode("seen", "put", random) for _ in range(40_000)):
        if set(each.layout.things) == {cube, ball} and set(each.layout.containers) == set(containers):
            chosen.update(each.requests)
    assert set(chosen) == {Request(thing, place) for thing in (cube, ball) for place in containers}


def test_a_chained_instruction_asks_for_two_different_things_at_different_places() -> None:
    for each in episodes("chained"):
        one, other = each.requests
        assert one.thing != other.thing and one.place != other.place
        assert each.instruction.count(", then ") == 1
    assert chained(["Put a down.", "Move b."]) == "Put a down, then move b."
    request = Request(Thing("red", "bar"), Container("white", "plate"))
    assert wording(request, "Put the {thing} {place}.") == "Put the red bar on the white plate."


def test_the_same_seed_draws_the_same_episode_and_nothing_lies_on_anything_else() -> None:
    first, again = episodes("seen", 40), episodes("seen", 40)
    assert first == again
    for each in first:
        places = np.array([[place.x, place.y] for place in each.layout.places])
        apart = np.linalg.norm(places[:, None] - places, axis=-1)
        assert apart[~np.eye(len(places), dtype=bool)].min() > 0.11
        assert len(places) < len(CELLS)


def test_a_suite_names_its_tasks() -> None:
    assert expand_tasks("tabletop", ["seen", "chained/put"]) == ["seen/move", "seen/put", "chained/put"]
    assert {task.partition("/")[0] for task in list_tasks("tabletop")} == {*TRAINING_SUITES, *TEST_SUITES}


if find_spec("metaworld") is not None:
    import mujoco

    from priorvla.deployment.environments.tabletop_env import TabletopEnv
    from priorvla.deployment.environments.tabletop_expert import expert_action


@pytest.fixture(scope="module")
def table() -> Iterator[TabletopEnv]:
    environment = TabletopEnv("seen/put", image_size=56)
    yield environment
    environment.close()


def drive(environment: TabletopEnv, seed: int, steps: int = 120, noise: float = 0.0) -> tuple[np.ndarray, bool]:
    """States of an episode of the expert, up to its first success, and whether there was one."""
    random = np.random.default_rng(seed)
    observation, info = environment.reset(seed=seed)
    states = [observation["state"]]
    while not info["success"] and len(states) <= min(steps, environment.max_episode_steps):
        observation, _, _, _, info = environment.step(
            environment.expert_action() + random.normal(0, noise * environment.noise_scale, 4)
        )
        states.append(observation["state"])
    return np.stack(states), info["success"]


def drive_on(environment: TabletopEnv) -> tuple[int, bool]:
    """The expert, from where the episode is: its steps, and whether it succeeded."""
    for step in range(environment.max_episode_steps):
        info = environment.step(environment.expert_action())[4]
        if info["success"]:
            return step + 1, True
    return environment.max_episode_steps, False


@needs_simulator
@pytest.mark.parametrize("task", ["many-instructions/put", "unseen-both/move", "chained/move"])
def test_the_expert_does_what_it_is_told_with_noise_too(task: str) -> None:
    environment = TabletopEnv(task, render=False)
    outcomes = [drive(environment, seed, noise=0.15 * (seed % 2))[1] for seed in range(6)]
    environment.close()
    assert outcomes == [True] * 6


@needs_simulator
def test_success_is_where_the_asked_thing_lies_and_doing_something_else_is_none(table: TabletopEnv) -> None:
    table.reset(seed=1)
    assert table.episode is not None
    own = table.episode
    layout = own.layout
    others = [r for r in possible_requests("seen", layout) if r not in own.requests]
    for other in others[:2]:
        table.reset(seed=1)
        table.episode = Episode(layout, (other,), "")
        while not table.step(table.expert_action())[4]["success"]:
            pass
        table.episode = own
        *_, terminated, _, info = table.step(np.zeros(4))
        assert (info["success"], terminated) == (False, True)  # what is done first counts
        assert info["outcome"] == ("implied" if other == implied_request(layout) else "another")


@needs_simulator
def test_what_was_done_is_told_and_of_two_requests_the_first_is_done_first() -> None:
    environment = TabletopEnv("chained/put", render=False)
    _, info = environment.reset(seed=0)
    assert environment.episode is not None and info["outcome"] == "nothing"
    own = environment.episode
    first = own.requests[0]
    elsewhere = next(r for r in all_requests(own.layout) if r.thing == first.thing and r not in own.requests)
    environment.episode = replace(own, requests=(elsewhere,))
    drive_on(environment)
    environment.episode = own
    *_, terminated, _, info = environment.step(np.zeros(4))
    assert (info["success"], terminated) == (False, True)  # the first thing lies where it was not asked for
    for order, outcome in ((own.requests, "asked"), (own.requests[1:], "another")):
        environment.reset(seed=0)
        environment.episode = replace(own, requests=order)
        _, success = drive_on(environment)
        assert success
        environment.episode = own
        *_, terminated, _, info = environment.step(np.zeros(4))
        assert (info["outcome"], terminated) == (outcome, outcome == "another")
    environment.close()


@needs_simulator
def test_what_lies_in_its_container_beyond_the_line_of_a_side_is_in_its_container(table: TabletopEnv) -> None:
    for seed in range(200):
        table.reset(seed=seed)
        assert table.episode is not None
        layout = table.episode.layout
        at_the_side = max(range(2), key=lambda index: layout.places[2 + index].x)
        if layout.places[2 + at_the_side].x > 0.14:
            break
    thing, container = layout.things[0], layout.containers[at_the_side]
    asked, beside = Request(thing, container), Request(thing, "left")
    scene = table._scene
    joint, height = scene._joints[0], scene.place_of(thing)[2]
    x, y = scene.goal_of(asked)
    scene.data.qpos[joint : joint + 3] = (x + 0.062, y, height)
    table.episode = Episode(layout, (asked,), "")
    mujoco.mj_forward(scene.model, scene.data)
    assert scene.fulfilled(asked) and scene.fulfilled(beside)
    assert table._info()["outcome"] == "asked"
    table.episode = Episode(layout, (Request(layout.things[1], "left"),), "")
    assert table._info()["success"] is False


@needs_simulator
def test_the_same_seed_gives_the_same_episode_whatever_ran_before_and_whoever_looked(table: TabletopEnv) -> None:
    first, _ = drive(table, seed=3)
    told = table.instruction
    drive(table, seed=4, steps=9)
    table.render()
    again, _ = drive(table, seed=3)
    fresh = TabletopEnv("seen/put", render=False)
    elsewhere, _ = drive(fresh, seed=3)
    assert (told, fresh.instruction) == (table.instruction, table.instruction)
    fresh.close()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, elsewhere)


@needs_simulator
def test_without_words_the_same_is_asked_for_and_nothing_is_said(table: TabletopEnv) -> None:
    silent = TabletopEnv("seen/put", words=False, render=False)
    silent.reset(seed=7)
    table.reset(seed=7)
    assert silent.instruction == "" and table.instruction.startswith(("Put", "Place", "Set"))
    assert silent.episode == table.episode
    silent.close()


@needs_simulator
def test_the_state_is_the_hand_and_the_vacuum_and_nothing_else(table: TabletopEnv) -> None:
    starts = np.stack([table.reset(seed=seed)[0]["state"] for seed in range(3)])
    assert starts.dtype == np.float32 and np.ptp(starts, axis=0).max() < 1e-6
    observation, _, terminated, _, info = table.step([0.3, 0.6, 0.24, 1])
    assert observation["state"][0] > starts[0, 0] + 0.002 and observation["state"][3] == 0.5
    assert terminated is False and set(info) == {"success", "outcome", "instructions"}
    states, _ = drive(table, seed=0)
    assert set(np.unique(states[:, 3])) >= {0.0, 1.0}


@needs_simulator
def test_the_hand_goes_where_an_action_says_and_not_off_the_table(table: TabletopEnv) -> None:
    table.reset(seed=0)
    low, high = table.action_space.low, table.action_space.high
    for goal in ([0.12, 0.5, 0.2, -1], [9, 0.6, 0.2, -1]):
        way = [table.step(goal)[0]["state"][:3] for _ in range(25)]
        np.testing.assert_allclose(way[-1], np.clip(goal, low, high)[:3], atol=0.01)
        assert np.abs(np.diff(way, axis=0)).max() < 0.07


@needs_simulator
def test_left_is_left_in_the_picture_and_colours_are_what_they_are_called() -> None:
    environment = TabletopEnv("unseen-both/move", image_size=56)  # cubes and balls
    for seed in range(3):
        environment.reset(seed=seed)
        assert environment.episode is not None
        request = environment.episode.requests[0]
        bright = environment.render().astype(int)
        while not environment.step(environment.expert_action())[4]["success"]:
            pass
        for _ in range(4):  # the hand goes up
            environment.step([0, 0, 1, -1])
        picture, channel = environment.render().astype(int), {"red": 0, "green": 1}.get(request.thing.colour)
        if channel is None:
            continue
        others = [dim for dim in range(3) if dim != channel]
        coloured = (picture[..., channel : channel + 1] > picture[..., others] + 25).all(-1)
        coloured[:14] = False  # the arm is red too
        columns = np.argwhere(coloured)[:, 1]
        edge = columns.min() if request.place == "left" else 55 - columns.max()
        assert edge < 20, (seed, request)
        assert (bright != picture).any()
    environment.close()


@needs_simulator
def test_light_table_and_camera_differ_from_scene_to_scene(table: TabletopEnv) -> None:
    corners = {tuple(table.reset(seed=seed)[0]["images"]["front"][-6:].mean((0, 1)).round()) for seed in range(6)}
    assert len(corners) > 4


@needs_simulator
def test_wild_actions_do_not_break_the_physics(table: TabletopEnv) -> None:
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.reset(seed=2)
        for _ in range(60):
            observation, reward, _, truncated, _ = table.step(random.choice([-1.0, 1.0], 4))
            assert np.isfinite(observation["state"]).all() and reward in (0.0, 1.0)
    assert truncated


@needs_simulator
def test_an_episode_in_which_something_else_was_done_first_is_no_demonstration() -> None:
    class Hasty(TabletopEnv):
        """Its expert does something else first, and then what it was told."""

        def expert_action(self):  # type: ignore[no-untyped-def]
            assert self.episode is not None
            asked = self.episode.requests[0]
            first = next(r for r in all_requests(self.episode.layout) if r.thing != asked.thing)
            return expert_action(self._scene, (first, asked))

    environment = Hasty("seen/put", render=False)
    settings = DemonstrationSettings(seed=0, noise=0.0, steps_after_success=None, attempts=3, images=False)
    assert record_demonstration(environment, "seen/put", 0, settings) is None
    environment.close()
    environment = TabletopEnv("seen/put", render=False)
    assert record_demonstration(environment, "seen/put", 0, settings) is not None
    environment.close()


@needs_simulator
def test_collected_episodes_carry_the_instruction_of_their_own_scene(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    command = "collect --env tabletop --tasks one-instruction --episodes 2 --no-images --workers 1 --output-dir"
    assert main([*command.split(), str(folder)]) == 0
    source, starts = load_trajectories(folder), load_collection_summary(folder).starts
    assert source.embodiment.name == "tabletop_sawyer"
    assert [start["task"] for start in starts] == ["one-instruction/move"] * 2 + ["one-instruction/put"] * 2
    for start, trajectory in zip(starts, source.trajectories, strict=True):
        environment = TabletopEnv(start["task"], render=False)
        environment.reset(seed=start["start_seed"])
        assert trajectory.task == environment.instruction
        environment.close()


@needs_simulator
def test_gymnasium_finds_nothing_wrong_with_it(table: TabletopEnv) -> None:
    from gymnasium.utils.env_checker import check_env

    class Drawn(TabletopEnv):
        """The checker keeps observations, whose pictures are gone after the next step: it gets drawn ones."""

        def _observation(self):  # type: ignore[no-untyped-def]
            observation = super()._observation()
            return {**observation, "images": dict(observation["images"])}

    environment = Drawn("many-instructions/put", image_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|render|spec|unwrapped|symmetric).*")
        check_env(environment, skip_render_check=True)
    environment.close()


@needs_simulator
def test_bad_arguments_are_refused_with_what_would_be_right(table: TabletopEnv) -> None:
    with pytest.raises(ValueError, match=r"'seen'.*seen/put"):
        TabletopEnv("seen")
    with pytest.raises(ValueError, match="image_size 0"):
        TabletopEnv("seen/put", image_size=0)
    table.reset(seed=0)
    with pytest.raises(ValueError, match="4 finite action values"):
        table.step([0, 0, np.nan, 0])
    unused = TabletopEnv("seen/put", render=False)
    for call in (unused.expert_action, lambda: unused.step(np.zeros(4))):
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            call()
    unused.close()


def test_without_metaworld_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['metaworld'] = None\nfrom priorvla.deployment.environments import tabletop_env\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'priorvla[tabletop]'" in result.stderr.splitlines()[-1]
