"""The language benchmark: which cells it has, what makes a table valid, and that other settings are refused."""

from __future__ import annotations

import argparse
import importlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from priorvla.deployment.environments.tabletop_env import TabletopEnv
from priorvla.deployment.environments.tabletop_layouts import TEST_SUITES, implied_request
from priorvla.deployment.environments.trial_starts import start_seed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: they import one another from their own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def outcomes(asked: int, otherwise: str = "nothing") -> list[str]:
    """Of 20 trials."""
    return ["asked"] * asked + [otherwise] * (20 - asked)


def cell(training: str, trained: int, successes: int, knob: str = "many", **others: Any) -> dict[str, Any]:
    """A cell of 20 trials a suite."""
    return {
        "host": "cross",
        "training": training,
        "knob": knob,
        "seed": 0,
        "trained": outcomes(trained),
        "suites": {suite: outcomes(successes) for suite in TEST_SUITES},
        "core_minutes": 3.0,
        "gates": {},
        **others,
    }


def test_a_row_that_did_not_learn_is_marked_and_so_is_the_table() -> None:
    table = importlib.import_module("language_table")
    good, bad = cell("one stage", 15, 12), cell("two stages", 13, 12)
    blind = cell(table.BLIND, 3, 3)
    assert "**not learned**" in table.row([bad]) and "**not learned**" not in table.row([{**good, "knob": "one"}])
    assert "**not learned**" in table.row([good])  # where training asks for anything, `seen` is learned, too
    as_trained, on_seen = table.validity("many", [[good], [bad], [blind]])[:2]
    assert "1 of 2 rows" in as_trained and "INVALID" in as_trained
    assert "0 of 2 rows do at least 70% on seen: INVALID" in on_seen
    better = cell("one stage", 15, 14)
    acts = {**blind, "trained": ["another"] * 14 + ["nothing"] * 6}
    assert not any("INVALID" in line for line in table.validity("many", [[better], [acts]]))
    assert not any("not measured" in line for line in table.validity("many", [[better], [acts]]))
    seen = table.validity("one", [[better], [bad], [blind]])[1]  # with the shortcut, `seen` is what is to be found out
    assert "1 of 2 rows do at least 70% on seen" in seen and "INVALID" not in seen


def test_a_prior_of_many_instructions_is_done_when_it_does_any_of_them() -> None:
    table = importlib.import_module("language_table")

    def verdict(idle: int) -> str:
        trained = ["another"] * (18 - idle) + ["asked"] * 2 + ["nothing"] * idle
        blind = {**cell(table.BLIND, 0, 2), "trained": trained}
        return next(line for line in table.validity("many", [[blind]]) if "acts" in line)

    assert verdict(6).startswith("many: cross: acts: blind does any request, as trained, seed 0 70% (")
    assert verdict(6).endswith(": valid") and verdict(7).endswith("INVALID: not learned")


def test_one_good_seed_does_not_make_a_row_valid() -> None:
    table = importlib.import_module("language_table")
    seeds = [cell("one stage", 20, 20, seed=0), cell("one stage", 8, 20, seed=1)]
    assert "**not learned**" in table.row(seeds)
    assert "0 of 1 rows do at least 70% as trained: INVALID" in table.validity("one", [seeds])[0]


def test_a_prior_that_was_not_done_is_told() -> None:
    table = importlib.import_module("language_table")

    def verdict(prior: int) -> str:
        lines = table.validity("one", [[cell("three rungs", 20, 3, prior=outcomes(prior))]])
        return next(line for line in lines if "shortcut" in line)

    told = "one: cross: shortcut: the prior of three rungs does, 100% at best, as trained, seed 0 70% ("
    assert verdict(14).startswith(told)
    assert verdict(14).endswith(": valid") and verdict(13).endswith("INVALID: not learned")


def test_the_premise_is_what_one_stage_follows_where_the_words_contradict_the_layout() -> None:
    table, trials = (importlib.import_module(name) for name in ("language_table", "language_trials"))
    parts = {suite: trials.contradicted(suite, 10, 0) for suite in table.SAID}
    follows = {"thing": "implied", "container": "another", "side": "asked", "nothing": "asked"}
    deaf = cell(table.CLAIM[1], 20, 0, "one", suites={suite: [follows[own] for own in parts[suite]] for suite in parts})
    counts = Counter(own for suite in parts.values() for own in suite)
    which, container, side = table.premise("one", [deaf, cell("two stages", 20, 20, "one")])
    assert which == (
        "one: premise: one stage, longer, where the words contradict the layout in which thing: "
        f"asked 0, implied {counts['thing']}, another 0, nothing 0: follows the layout"
    )
    assert f"another {counts['container']}" in container and container.endswith(": undecided")
    assert f"asked {counts['side']}, implied 0" in side and side.endswith(": follows the words")
    either = cell(table.CLAIM[1], 20, 10, "one")
    assert all(
        line.endswith(": undecided")
        for line in table.premise(
            "one", [{**either, "suites": {suite: ["asked", "implied"] * 10 for suite in TEST_SUITES}}]
        )
    )
    assert table.premise("many", [deaf]) == [] == table.premise("one", [cell("two stages", 20, 20, "one")])


def test_words_contradict_a_layout_as_its_episode_says() -> None:
    trials = importlib.import_module("language_trials")
    parts = trials.contradicted("unseen-place", 10, 4)
    assert set(parts) == {"thing", "container", "side", "nothing"} and len(parts) == 20
    for number, (task, trial) in enumerate(product(("unseen-place/move", "unseen-place/put"), range(10))):
        with TabletopEnv(task, image_size=32) as table:
            table.reset(seed=start_seed(trials.start_of(task, 4), trial))
            (asked,), implied = table.episode.requests, implied_request(table.episode.layout)
            same, kinds = asked.thing == implied.thing, {asked.kind, implied.kind}
            assert (parts[number] == "thing") == (not same)
            assert (parts[number] == "nothing") == (asked == implied)
            assert (parts[number] == "container") == (same and asked.place != implied.place and kinds == {"put"})
    assert set(trials.contradicted("one-instruction", 5, 0)) == {"nothing"}


def test_a_scene_that_gives_its_answer_away_makes_the_table_invalid() -> None:
    table = importlib.import_module("language_table")
    lines = table.validity("one", [[cell("one stage", 20, 3)], [cell(table.BLIND, 20, 8)]])
    assert "not measured" in table.validity("one", [[cell("one stage", 20, 3)]])[2]
    assert sum("INVALID: the scene gives the answer away" in line for line in lines) == 4
    assert any("shortcut: blind does, 100% at best" in line and line.endswith(": valid") for line in lines)


def test_hosts_that_share_their_starts_are_no_more_trials_of_what_never_reads() -> None:
    table = importlib.import_module("language_table")
    hosts = [[cell(table.BLIND, 20, 5, host=host)] for host in ("cross", "joint", "gated")]
    together = [line for line in table.validity("one", hosts) if "all hosts" in line]
    assert len(together) == 4 and together[0].startswith("one: all hosts: blind on seen: 25% (11% to 47%), by chance")
    assert not any("all hosts" in line for line in table.validity("one", hosts[:1]))


def test_a_shortcut_that_nobody_learns_makes_the_table_invalid() -> None:
    table = importlib.import_module("language_table")

    def verdict(knob: str, trained: int) -> str:
        return next(line for line in table.validity(knob, [[cell(table.BLIND, trained, 2)]]) if "shortcut" in line)

    assert "INVALID: not learned" in verdict("one", 13) and "INVALID" not in verdict("one", 14)
    assert "92% at best" in verdict("mostly-one", 13) and verdict("mostly-one", 13).endswith(": valid")
    assert "INVALID" in verdict("mostly-one", 12)
    seeds = [cell(table.BLIND, 12, 2, seed=0), cell(table.BLIND, 20, 2, seed=1)]  # 32 of 40 together
    lines = [line for line in table.validity("one", [seeds]) if "shortcut" in line]
    assert len(lines) == 1 and "seed 0 60%" in lines[0] and "INVALID" in lines[0]
    assert not any("shortcut" in line for line in table.validity("many", [[cell(table.BLIND, 2, 2)]]))


def test_the_claim_is_a_difference_over_the_same_starts() -> None:
    table = importlib.import_module("language_table")
    arms = [cell("two stages", 16, 15, "one"), cell("one stage, longer", 16, 5, "one")]
    told = "two stages minus one stage, longer on seen and unseen-object"
    whole, alone, *parts = table.claims("one", arms)
    assert whole == f"one: claim: {told}, all 1 pairs: +50 points (+35 to +65)"
    assert alone == f"one: beside it: {told}, pair by pair: cross 0 +50"
    for line, (part, name) in zip(parts, table.PARTS.items(), strict=True):
        gained = [suite[n] == part for suite in contradictions(table.SAID) for n in range(5, 15)]
        asked = [own == part for suite in contradictions(table.SAID) for own in suite]
        assert f"beside it: two stages minus one stage, longer where the words contradict the layout in {name}" in line
        assert f": {100 * sum(gained) / sum(asked):+.0f} points" in line
    same = [cell("two stages", 16, 15, host=host, seed=seed) for host in ("cross", "gated") for seed in (1, 2)]
    same += [{**own, "training": "one stage, longer"} for own in same]
    lines = table.claims("many", same)
    names = [line.partition("object, ")[2].partition(":")[0] for line in lines]
    assert names == ["all 4 pairs", "pair by pair", "cross", "gated", "seed 1", "seed 2", "", "", ""]
    assert not any("claim" in line for line in lines)
    assert all(line.endswith("+0 points (+0 to +0)") for line in lines if "pair by pair" not in line)
    assert table.claims("one", arms[:1]) == []
    beside = table.claims("one", [arms[0], cell("one stage", 16, 5, "one")], table.AS_LONG_HEARD)
    assert beside[0] == f"one: beside it: {told.replace(', longer', '')}, all 1 pairs: +50 points (+35 to +65)"


def contradictions(suites: Sequence[str]) -> list[tuple[str, ...]]:
    """Of the starts of cells of seed 0."""
    return [importlib.import_module("language_trials").contradicted(suite, 10, 0) for suite in suites]


def test_what_was_not_learned_is_counted_and_left_out_beside_it() -> None:
    table = importlib.import_module("language_table")
    good = [cell("two stages", 16, 15, "one"), cell("one stage, longer", 16, 5, "one")]
    bad = [cell("two stages", 13, 20, "one", seed=1), cell("one stage, longer", 16, 0, "one", seed=1)]
    every, alone, learned, *_ = table.claims("one", good + bad)
    assert "claim" in every and ", all 2 pairs: +75 points" in every
    assert alone.endswith("pair by pair: cross 0 +50, cross 1 +100")
    assert "beside it" in learned and learned.endswith("the 1 pairs that both learned: +50 points (+35 to +65)")
    assert any(line.endswith("the 0 pairs that both learned: none") for line in table.claims("one", bad))
    unseen = [{**own, "knob": "many"} for own in good]  # one stage does 5 of 20 of what many instructions taught it
    assert any(line.endswith("the 0 pairs that both learned: none") for line in table.claims("many", unseen))


def test_hosts_share_their_starts_so_that_more_hosts_are_no_more_starts() -> None:
    table = importlib.import_module("language_table")
    arms = [cell("two stages", 16, 15, "one"), cell("one stage, longer", 16, 5, "one")]
    three = [{**own, "host": host} for own in arms for host in ("cross", "joint", "gated")]
    assert "+50 points (+35 to +65)" in table.claims("one", three)[0]


def test_a_row_says_what_was_done_instead_and_which_gates_are_open() -> None:
    table = importlib.import_module("language_table")
    done = ["asked"] * 10 + ["implied"] * 6 + ["another"] * 3 + ["nothing"]
    gates = {"layers.0.cross_gate": 0.6, "layers.1.cross_gate": 0.1, "layers.2.cross_gate": 0.4}
    listening = {f"language_sensitivity/swap{end}": value for end, value in (("", 2.0), ("_low", 1.2), ("_high", 3.5))}
    known = {"suites": dict.fromkeys(TEST_SUITES, done), "gates": gates, "listening": listening}
    two, one = (table.row([cell(training, 16, 0, **known)]) for training in ("two stages", table.ALL_READ))
    parts = (table.shown(table.count([table.against(cell("any", 16, 0, **known), own)])) for own in table.PARTS)
    assert f"| 30% / 15% / 5% | {' | '.join(parts)} | 2.0 (1.2 to 3.5) | cross 0.50 / 0.10 | 3 |" in two
    assert "| cross 0.37 | 3 |" in one


def test_seeds_are_counted_together_and_the_report_says_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = importlib.import_module("language_table")
    cells = [cell("one stage", 16, 10, seed=seed, without_words=outcomes(4)) for seed in range(2)]
    table.report(tmp_path, {"trials": 10}, [*cells, cell("one stage", 16, 4, knob="one")])
    assert "50% (35% to 65%)" in table.row(cells)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["cells"]) == 3 and report["trials"] == 10
    assert {file.name for file in tmp_path.glob("*.png")} == {"cross-many.png", "cross-one.png"}
    written = (tmp_path / "table.md").read_text()
    assert written.strip() == capsys.readouterr().out.strip() and table.row(cells) in written
    assert all(f"- {line}\n" in written for line in report["lines"]) and report["lines"]


def test_the_plot_shows_what_the_words_contradict_and_blind_before_the_others() -> None:
    table = importlib.import_module("language_table")
    one, blind = cell("one stage", 16, 20), cell(table.BLIND, 16, 0)
    arms = table.drawn([[one], [blind]])
    assert list(arms) == [table.BLIND, "one stage"] and list(arms["one stage"]) == list(arms[table.BLIND])
    for (name, counts), part in zip(list(arms["one stage"].items())[-3:], table.PARTS, strict=True):
        assert name == f"against layout:\n{table.PARTS[part]}" and counts[0] > 0
        assert counts == table.count([table.against(one, part)])


def test_words_that_are_followed_are_told_by_part_and_whether_policies_learned() -> None:
    table = importlib.import_module("language_table")
    arms = [cell("one stage", 16, 10, "one"), cell("one stage", 2, 10, "one", host="joint")]
    arms += [cell(table.BLIND, 3, 0, knob="one"), cell("two stages", 16, 14)]
    heads, _, *lines = table.by_part(arms)
    assert heads == "| knob | against the layout | one stage | blind | two stages |" and len(lines) == 6
    for line, (part, name) in zip(lines, table.PARTS.items(), strict=False):
        low, high = (f"{end:.0%}" for end in table.wilson_interval(*table.count([table.against(arms[0], part)])))
        done = table.count([table.against(arms[0], part)])
        both = f"{done[0] / done[1]:.0%} ({low} to {high}; 1 of 2 learned)"  # hosts share their starts
        assert line.startswith(f"| one | {name} | {both} | 0% (") and line.endswith(" | - |")
    names = table.PARTS.values()
    assert all(line.startswith(f"| many | {name} | - | - | ") for line, name in zip(lines[3:], names, strict=True))


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    require = importlib.import_module("same_settings").require_same_settings
    names = importlib.import_module("language").SETTINGS
    settings = dict.fromkeys(names, 1)
    for _ in range(2):
        require(tmp_path / "runs", argparse.Namespace(**settings), names)
    with pytest.raises(SystemExit, match=r"--language-steps 2: .* was begun with 1"):
        require(tmp_path / "runs", argparse.Namespace(**{**settings, "language_steps": 2}), names)
    with pytest.raises(SystemExit, match=r"^recipes abc: .* was begun with None"):  # by an older release
        require(tmp_path / "runs", argparse.Namespace(**settings), names, recipes="abc")


def test_every_training_starts_where_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = importlib.import_module("language")
    said: list[tuple[Any, ...]] = []

    def told(*arguments: Any) -> float:
        said.append(arguments)
        Path(arguments[arguments.index("--output-dir") + 1]).mkdir(parents=True)
        return 1.0

    monkeypatch.setattr(language, "command", told)
    options = argparse.Namespace(
        output_dir=tmp_path, frame_stride=3, sight_steps=30, motion_steps=10, language_steps=40, listening=0
    )
    group = language.Group(options, "gated", "many", 0)
    steps, begun = {}, {}
    for training in language.TRAININGS:
        said.clear()
        group.policy(training)
        steps[training] = [(command[0], command[command.index("--max-steps") + 1]) for command in said]
        if said:
            kept = {own for own in said[-1] if own in ("--control", "--insertion", "token", "--fusion")}
            prior = said[-1][said[-1].index("--prior") + 1].name if "--prior" in said[-1] else None
            begun[training] = (prior, kept)
    assert begun == {
        "one stage": ("sight", {"--control"}),
        "one stage, longer": ("sight", {"--control"}),
        "two stages": ("sight", set()),
        "token insertion": ("sight", {"--insertion", "token"}),
        "three rungs": ("sight-of-motion", set()),
        language.ALL_READ: (None, {"--fusion"}),
    }
    kinds = {
        name: yaml.safe_load((group.folder / f"{name}.yaml").read_text())["model"]["expert"]["expert_layers"]
        for name in ("all-layers-read", "sight")
    }
    assert kinds == {"all-layers-read": ["vision_language"] * 4, "sight": ["vision"] * 2}
    assert steps == {
        "one stage": [("pretrain", 30), ("train", 40)],  # the prior says what its layers are
        "one stage, longer": [("train", 70)],
        "two stages": [("train", 40)],  # the prior is there already
        "token insertion": [("train", 40)],
        "three rungs": [("pretrain", 10), ("pretrain", 20), ("train", 40)],
        language.BLIND: [],  # which is that prior
        language.ALL_READ: [("train", 70)],
    }
    said.clear()
    group.policy("three rungs")
    assert said == []  # what is finished is not done again


def test_a_finished_cell_is_kept_and_is_all_that_another_machine_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = importlib.import_module("language")
    measured: list[str] = []
    monkeypatch.setattr(
        language.Group, "measure", lambda self, training: measured.append(training) or cell(training, 16, 10)
    )
    options = argparse.Namespace(output_dir=tmp_path / "here", trainings=["one stage", "two stages"])
    group = language.Group(options, "cross", "many", 0)
    first = group.measured("one stage")
    assert first == cell("one stage", 16, 10) and not group.is_done()
    (tmp_path / "here").rename(tmp_path / "there")
    options.output_dir = tmp_path / "there"
    there = language.Group(options, "cross", "many", 0)
    assert there.measured("one stage") == first and measured == ["one stage"]
    there.measured("two stages")
    options.trainings.append(language.ALL_READ)
    assert language.Group(options, "gated", "many", 0).trainings == ["one stage", "two stages"]
    assert not there.is_done()
    there.measured(language.ALL_READ)  # of the first host alone
    assert there.is_done() and not language.Group(options, "cross", "one", 0).is_done()


def test_two_processes_do_not_work_on_one_group(tmp_path: Path) -> None:
    language = importlib.import_module("language")
    group = language.Group(argparse.Namespace(output_dir=tmp_path), "cross", "many", 0)
    with group.alone():
        other = language.Group(argparse.Namespace(output_dir=tmp_path), "joint", "many", 0)
        with other.alone():  # of another host
            pass
        with pytest.raises(SystemExit, match=r"another process works on .*cross: wait for it, or"), group.alone():
            pass
    with group.alone():
        pass


def test_a_cell_knows_its_priors_and_the_minutes_of_all_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = importlib.import_module("language")

    def train(*arguments: Any) -> float:
        Path(arguments[arguments.index("--output-dir") + 1]).mkdir(parents=True)
        return float(arguments[arguments.index("--max-steps") + 1])

    def done(policy: Path, suites: list[str], trials: int, seed: int, *, words: bool = True) -> dict[str, list[str]]:
        return {suite: [f"{policy.name} {suite} {words} {trials}"] for suite in suites}

    monkeypatch.setattr(language, "command", train)
    monkeypatch.setattr(language, "done_by", done)
    monkeypatch.setattr(language, "listening", lambda policy, scenes, seed: {"told": policy.name})
    gates = argparse.Namespace(gate_values=lambda: {"layers.0.cross_gate": 0.5})
    monkeypatch.setattr(language.PriorVLAModel, "from_pretrained", lambda folder: gates)
    steps = {"sight_steps": 30, "motion_steps": 10, "language_steps": 40}
    options = argparse.Namespace(output_dir=tmp_path, frame_stride=8, trials=1, listening=2, **steps)
    cells = {
        (knob, training): language.Group(options, "cross", knob, 0).measure(training)
        for knob in ("many", "one")
        for training in language.TRAININGS
    }
    told = {training: cells["one", training].get("prior") for training in language.TRAININGS}
    assert {training: prior for training, prior in told.items() if prior} == {
        "three rungs": ["sight-of-motion one-instruction True 2"],
    }
    assert not any("prior" in cells["many", training] for training in language.TRAININGS)
    assert [cells["one", training]["core_minutes"] for training in language.TRAININGS] == [40, 70, 70, 70, 70, 30, 70]
    assert cells["many", "two stages"]["without_words"] == ["two-stages many-instructions False 1"]
    assert cells["many", "two stages"]["trained"] == ["two-stages many-instructions True 2"]
    assert set(cells["many", "two stages"]["suites"]) == set(TEST_SUITES)
    assert cells["one", "three rungs"]["listening"] == {"told": "three-rungs"}
    assert not {"listening", "without_words"} & set(cells["one", language.BLIND])
