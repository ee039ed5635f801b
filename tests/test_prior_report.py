"""The report on a prior is one page for people, one JSON for programs, and claims no more than its intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from priorvla.training.chunk_distances import Bootstrapped
from priorvla.training.prior_measures import Reconstruction, VelocityLoss
from priorvla.training.prior_quality import BodyQuality, LatentUsage, PriorQuality, Resemblance, Smoothness
from priorvla.training.prior_report import read_report, summary, told_interval, write_prior_report


def around(value: float, spread: float = 0.01) -> Bootstrapped:
    return Bootstrapped(value, np.linspace(value - spread, value + spread, 41))


def body(name: str = "arm", dims: int = 2, pca_gain: float = 0.05, **fields) -> BodyQuality:
    by_time = {key: np.linspace(level, 1.0, 10) for key, level in (("own", 0.2), ("null", 0.5), ("other", 1.1))}
    by_time |= {"gaussian": np.full(10, 1.2), "zero": np.full(10, 2.0)}
    names = ("reconstruction", "pca", "interpolation", "mean_chunk")
    errors = {name: around(0.1 * (number + 1)) for number, name in enumerate(names)}
    measures = {
        "reconstruction": Reconstruction(
            errors=errors,
            by_dim={**{name: np.arange(dims) + 0.5 for name in names[:3]}, "mean_chunk": np.full(dims, 10.0)},
            normalised=dict.fromkeys(errors, 0.2),
            gains={name: around(pca_gain) for name in names[1:]},
            latent_dim=8,
            knots=4,
            exact_pca=False,
            components=5,
        ),
        "smoothness": Smoothness(1.3, np.array([1.3, np.nan]), np.arange(1.0, 5), np.ones(4), np.full(4, 2.0), 2.0),
        "resemblance": Resemblance(around(0.08), around(0.02), 0.03, around(0.8), around(0.95), 0.9, 0.04),
        "latent": LatentUsage(8, 3.4, np.full(8, 1 / 8), np.ones(8), 0.6),
        "held_out_examples": np.zeros((3, 8, dims)),
        "sample_examples": np.ones((3, 8, dims)),
    }
    labels = [f"j{index}" for index in range(dims)]
    velocity = VelocityLoss(np.arange(0.05, 1, 0.1), by_time, around(0.3), around(0.5), around(0.4))
    return BodyQuality(name, labels, labels, 10.0, 200, 9, False, velocity, **{**measures, **fields})


def test_the_report_answers_every_question_for_every_body(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}]
    quality = PriorQuality([body("arm"), body("hand", 9)], seed=3)
    page, file = write_prior_report(tmp_path, quality, history)
    text = page.read_text()
    for heading in ("In short", "know the motion?", "told in 8 numbers?", "look like the data?", "smooth?", "Training"):
        assert heading in text, heading
    assert text.count("<svg") == 5 + 2 + 1  # a plot a question, one a body, the losses
    assert "0.1 [0.0905, 0.11]" in text and ">j8<" in text  # the hardest dim
    content = json.loads(file.read_text())
    assert content["kind"] == "action-prior" and content["seed"] == 3 and content["versions"]["torch"]
    assert list(content["embodiments"]) == ["arm", "hand"]
    arm = content["embodiments"]["arm"]
    assert arm["reconstruction"]["errors"]["pca"]["value"] == pytest.approx(0.2)
    assert arm["velocity"]["by_time"]["null"][0] == 0.5 and len(arm["velocity"]["times"]) == 10
    assert arm["smoothness"]["jerk_by_dim"] == [1.3, None]  # JSON has no NaN
    assert not any(key.endswith("_examples") for key in arm)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert read_report(tmp_path) == content


def test_headline_numbers_carry_the_bodys_name():
    metrics = PriorQuality([body("arm"), body("hand", resemblance=None)], seed=0).metrics()
    assert metrics["reconstruction_error/arm"] == pytest.approx(0.1)
    assert metrics["mean_chunk_error/hand"] == pytest.approx(0.4)
    assert metrics["coverage/arm"] == pytest.approx(0.8) and "coverage/hand" not in metrics
    assert all(isinstance(value, float) for value in metrics.values())
    still = Smoothness(float("nan"), np.full(2, np.nan), np.arange(1.0, 5), np.zeros(4), np.zeros(4), float("nan"))
    assert "jerk_ratio/arm" not in PriorQuality([body("arm", smoothness=still)], seed=0).metrics()
    assert "jerk" not in summary(body("arm", smoothness=still))


@pytest.mark.parametrize(
    ("gain", "said"),
    [(0.05, "the prior errs less"), (-0.05, "the prior errs more"), (0.001, "do not tell the two apart")],
)
def test_a_rival_is_worse_or_not_only_where_the_interval_leaves_zero_out(gain, said):
    assert said in summary(body(pca_gain=gain))


def test_what_was_not_measured_is_said(tmp_path):
    nothing = {"reconstruction": None, "smoothness": None, "resemblance": None, "latent": None}
    text = write_prior_report(tmp_path / "short", PriorQuality([body(**nothing)], seed=0))[0].read_text()
    assert "only the velocity loss could be measured" in text and "told in" not in text
    text = write_prior_report(tmp_path / "none", PriorQuality([], seed=0))[0].read_text()
    assert "No episode was held out" in text
    assert json.loads((tmp_path / "none" / "report.json").read_text())["embodiments"] == {}


def test_too_few_episodes_and_a_rival_that_loses_nothing_are_pointed_out(tmp_path):
    few = BodyQuality(**{**vars(body("scarce")), "few_episodes": True})
    plenty = body("plenty")
    exact = BodyQuality(
        **{**vars(plenty), "reconstruction": Reconstruction(**{**vars(plenty.reconstruction), "exact_pca": True})}
    )
    text = write_prior_report(tmp_path, PriorQuality([few, exact], seed=0))[0].read_text()
    assert "Of scarce fewer than eight episodes were held out" in text
    assert "Of plenty a chunk has no more numbers than the latent" in text


def test_another_kind_of_report_is_not_taken_for_a_priors(tmp_path):
    assert read_report(tmp_path) == {}
    (tmp_path / "report.json").write_text('{"kind": "inspection"}')
    assert read_report(tmp_path) == {}


def test_an_interval_is_told_with_its_digits():
    assert told_interval(around(0.123456, 0.01)) == "0.123 [0.114, 0.133]"
    assert told_interval(around(0.123456, 0.01), 2) == "0.12 [0.11, 0.13]"
