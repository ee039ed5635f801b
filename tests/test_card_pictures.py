"""A card shows the plots that lie beside it, wherever it goes, and never one that does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from priorvla.cli import main
from priorvla.hub_cards.card import create_card, load_card
from priorvla.hub_cards.card_evaluation import read_evaluation
from priorvla.hub_cards.card_pictures import PLOTS, gather_pictures, plots_in, shown_pictures
from priorvla.hub_cards.card_plots import save_prior_plots, save_success_plot
from priorvla.hub_cards.publish_checkpoint import publish_checkpoint
from priorvla.hub_cards.publishing import publish
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor

BYTES = 200_000
JPEG = b"\xff\xd8\xff a photo"
EVALUATION = {"environment": "Meta-World", "tasks": {"drawer-open": {"successes": 7, "trials": 8}}}
REPORT = {
    "kind": "evaluation",
    "environment": "metaworld",
    "seed": 4,
    "execute_steps": None,
    "blank_images": False,
    "wall_time_s": 3.0,
    "tasks": {"drawer-open": {"successes": 7, "trials": 8, "interval": [0.5, 0.9], "outcomes": [True] * 8}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_demonstrations, tiny_fields, bodies) -> Path:
    """A prior that was trained by the command for a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = write_demonstrations(folder / "dataset", bodies[0], [14] * 4, images=False)
    (folder / "recipe.yaml").write_text(json.dumps({"model": tiny_fields}))
    asked = {"--dataset": dataset, "--output-dir": folder / "run", "--config": folder / "recipe.yaml"}
    asked |= {"--holdout": 0.5, "--max-steps": 4, "--device": "cpu"}
    assert main(["pretrain", *(str(word) for option in asked.items() for word in option)]) == 0
    return folder / "run"


def is_on_white(file: Path) -> bool:
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    return bool((pixels[..., 3] == 255).all() and (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all())


def test_a_trained_prior_shows_its_loss_and_what_it_knows(run):
    shown = shown_pictures(load_card(run).text)
    assert set(shown) == {"loss.png", "velocity.png", "spectra.png"} == set(plots_in(run))
    for name in shown:
        assert is_on_white(run / name) and (run / name).stat().st_size < BYTES, name


def test_a_checkpoint_of_the_training_has_no_plots_and_shows_none(run):
    folder = next(run.glob("checkpoint-*"))
    assert not list(folder.glob("*.png")) and not shown_pictures(load_card(folder).text)


def test_plots_are_published_with_the_card_that_shows_them(run, tmp_path):
    folder = publish_checkpoint(run, tmp_path / "shared", license="mit")
    assert shown_pictures(load_card(folder).text) == shown_pictures(load_card(run).text) != []
    for name in shown_pictures(load_card(folder).text):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    again = publish_checkpoint(folder, tmp_path / "again", license="mit")
    assert set(plots_in(again)) == set(plots_in(run)), "also from where it was published to"


def test_on_the_hub_plots_and_card_are_in_one_commit(run, hub):
    publish_checkpoint(run, "me/prior", license="mit")
    files = set(hub.opened("models", "me/prior").head().files)
    assert {"loss.png", "velocity.png", "spectra.png", "README.md"} <= files
    assert len(hub.opened("models", "me/prior").commits) == 2, "the Hub's own, and ours"


def test_a_plot_that_is_gone_is_not_shown_and_neither_is_its_caption(run, tmp_path):
    text = load_card(run).text
    other = tmp_path / "other"
    other.mkdir()
    (other / "loss.png").write_bytes((run / "loss.png").read_bytes())
    left = gather_pictures(text, other, tmp_path / "published")
    assert shown_pictures(left) == ["loss.png"] and (tmp_path / "published" / "loss.png").is_file()
    assert PLOTS["loss.png"].caption in left and PLOTS["velocity.png"].caption not in left
    assert not shown_pictures(gather_pictures(text, None, tmp_path / "nowhere"))


def test_a_model_that_is_published_without_its_folder_shows_no_plots(run, tmp_path, tiny_priors):
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, 0)])
    processor = PriorVLAProcessor(embodiments=bodies, chunk_size=tiny_priors.CHUNK)
    folder = publish(model, processor, tmp_path / "out", card=load_card(run), license="mit")
    assert not shown_pictures(load_card(folder).text) and not list(folder.glob("*.png"))


def test_somebodys_own_picture_goes_along_and_a_missing_or_foreign_one_is_named(run, tmp_path):
    (run / "robot.jpg").write_bytes(JPEG)
    card = load_card(run)
    own = type(card)(f'{card}\n<img width="300" src="robot.jpg">\n![web](https://example.org/a.png)\n')
    processor = PriorVLAProcessor.from_pretrained(run)
    model = _load(run)
    folder = publish(model, processor, tmp_path / "out", card=own, license="mit", pictures=run)
    assert (folder / "robot.jpg").read_bytes() == JPEG
    for missing in ("nobody.png", "../secret.png"):
        (run.parent / "secret.png").touch()
        lost = type(card)(f"{card}\n![mine]({missing})\n")
        with pytest.raises(ValueError, match=re.escape(f"the card shows {missing!r}, which is not beside it")):
            publish(model, processor, tmp_path / "lost", card=lost, license="mit", pictures=run)
        assert not (tmp_path / "lost").exists()


def test_only_pictures_are_taken_for_pictures_and_none_from_elsewhere(tmp_path):
    source, private = tmp_path / "run", tmp_path / "private.png"
    source.mkdir()
    private.write_bytes(JPEG)
    (source / "link.png").symlink_to(private)
    (source / "text.png").write_text("hf_of_me")
    for name, said in (("link.png", "is not beside it"), ("text.png", "no picture: only PNG and JPEG")):
        with pytest.raises(ValueError, match=said):
            gather_pictures(f"![x]({name})", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_is_found_in_the_hubs_cache_which_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "ab").write_bytes(JPEG)
    (snapshot / "robot.jpg").symlink_to(blobs / "ab")
    gather_pictures("![x](robot.jpg)", snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "robot.jpg").read_bytes() == JPEG


def test_success_by_task_is_drawn_when_an_evaluation_is_published(save_policy, bodies, tmp_path):
    source = save_policy(tmp_path / "policy", bodies, fusion="joint")
    reports = tmp_path / "evaluation"
    reports.mkdir()
    (reports / "report.json").write_text(json.dumps(REPORT))
    folder = publish_checkpoint(source, tmp_path / "out", license="mit", evaluation=reports)
    text = load_card(folder).text
    assert shown_pictures(text) == ["success.png"] and is_on_white(folder / "success.png")
    assert "| drawer-open | 7 / 8 | 88 % |" in text and "| seed | 4 |" in text and "wall" not in text
    again = publish_checkpoint(folder, tmp_path / "again", license="mit", evaluation=reports / "report.json")
    assert shown_pictures(load_card(again).text) == ["success.png"] == plots_in(again)
    kept = publish_checkpoint(again, tmp_path / "kept", license="mit")
    assert plots_in(kept) == ["success.png"] and load_card(kept).data.eval_results[0].metric_value == 87.5


def test_only_an_evaluation_of_the_seeing_policy_is_an_evaluation(tmp_path):
    for content, message in (
        ({**REPORT, "blank_images": True}, "black pictures"),
        ({"kind": "action-prior"}, "no evaluation"),
        ([], "no evaluation"),
    ):
        (tmp_path / "report.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_evaluation(tmp_path)
    with pytest.raises(FileNotFoundError, match="priorvla evaluate"):
        read_evaluation(tmp_path / "nowhere")


def test_a_card_shows_only_what_it_is_told_lies_beside_it(run, bodies):
    arguments = {"config": _load(run).config, "embodiments": bodies[:1], "license": "mit"}
    assert not shown_pictures(create_card("action-prior", **arguments).text)
    assert shown_pictures(create_card("action-prior", **arguments, plots=["loss.png"]).text) == ["loss.png"]


def test_many_bodies_and_many_tasks_still_make_small_pictures(tmp_path):
    steps, body = np.linspace(0, 1, 10).tolist(), np.random.default_rng(0).random(10).tolist()
    velocity = {"times": steps, "by_time": dict.fromkeys(("own", "null", "gaussian", "zero"), body)}
    smoothness: dict[str, Any] = dict.fromkeys(("frequencies", "data_power", "sample_power"), body)
    bodies = {f"body {i}": {"velocity": velocity, "smoothness": smoothness} for i in range(12)}
    save_prior_plots({"embodiments": bodies}, tmp_path)
    save_success_plot({"tasks": {f"task {i}": {"successes": i, "trials": 20} for i in range(20)}}, tmp_path)
    assert plots_in(tmp_path) == ["success.png", "velocity.png", "spectra.png"]
    assert all((tmp_path / name).stat().st_size < BYTES for name in plots_in(tmp_path))
    save_prior_plots({}, tmp_path / "nothing measured")


def _load(folder: Path) -> Any:
    from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel

    return ActionPriorModel.from_pretrained(folder)
