"""`priorvla info` and the card show what was measured and how a policy sees and hears, and load no weights for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.hub_cards.card import create_card
from priorvla.hub_cards.checkpoints import kind_of
from priorvla.hub_cards.info import checkpoint_folder, describe_checkpoint
from priorvla.hub_cards.listening import listening
from priorvla.hub_cards.prior_metrics import metrics_by_body

METRICS = {
    "held_out_windows": 300,
    "velocity_loss": 0.41,
    "velocity_loss/arm": 0.4,
    "velocity_loss/hand": 0.44,
    "coverage/arm": 0.83,
    "reconstruction_error/arm": 0.0317,
    "reconstruction_error/hand": 1.25,
    "success/drawer": 0.5,
}


@pytest.fixture(scope="module")
def checkpoint(tiny_priors: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained prior of one body with metrics, as a folder."""
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, seed=0)])
    folder = tiny_priors.save_prior(model, bodies, tmp_path_factory.mktemp("info") / "prior")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def test_measures_of_bodies_become_a_table_and_the_rest_stays():
    others, (headings, rows) = metrics_by_body(METRICS)
    assert others == {"held_out_windows": 300, "velocity_loss": 0.41, "success/drawer": 0.5}
    assert headings == ["body", "velocity loss", "chunk error", "coverage"]
    assert rows == [["arm", "0.4", "0.0317", "83%"], ["hand", "0.44", "1.25", "–"]]
    assert metrics_by_body({}) == ({}, (["body"], []))


def test_info_prints_a_row_a_body_under_aligned_headings(checkpoint):
    lines = describe_checkpoint(checkpoint).splitlines()
    head = next(line for line in lines if "on held-out motion" in line)
    arm, hand = lines[lines.index(head) + 1 : lines.index(head) + 3]
    for heading, values in (("velocity loss", ("0.4", "0.44")), ("coverage", ("83%", "–"))):
        column = head.index(heading)
        assert (arm[column:].split()[0], hand[column:].split()[0]) == values
    assert any("held_out_windows" in line and line.endswith("300") for line in lines)
    assert not any("report.html" in line for line in lines)
    (checkpoint / "report.html").write_text("")
    assert f"{checkpoint / 'report.html'}" in describe_checkpoint(checkpoint)


def test_info_loads_no_deep_learning(checkpoint):
    code = (
        "import sys; from priorvla.hub_cards.info import describe_checkpoint;"
        f"print(describe_checkpoint({str(checkpoint)!r}));"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "action prior (rung 1: motion)" in done.stdout


def test_a_folder_is_itself_and_what_is_neither_folder_nor_hub_id_is_named(checkpoint, tmp_path):
    assert checkpoint_folder(str(checkpoint)) == checkpoint
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: pass a checkpoint's folder or its Hub id"):
        checkpoint_folder(tmp_path / "nowhere")


def test_the_card_has_the_table_and_says_what_the_numbers_mean(tiny_priors):
    model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, seed=0)])
    arguments: dict[str, Any] = {"config": model.config, "embodiments": bodies, "license": "apache-2.0"}
    text = create_card("action-prior", metrics=METRICS, **arguments).text
    lines = text.splitlines()
    head = lines.index("| body | velocity loss | chunk error | coverage |")
    assert lines[head + 1 : head + 4] == [
        "|---|--:|--:|--:|",
        "| arm | 0.4 | 0.0317 | 83% |",
        "| hand | 0.44 | 1.25 | – |",
    ]
    assert "| held out windows | 300 |" in lines and "velocity loss/arm" not in text
    assert "Coverage: the share of held-out chunks near which a sample lies." in text
    plain = create_card("action-prior", metrics={"eval_loss": 0.3}, **arguments).text
    assert "| eval loss | 0.3 |" in plain and "On held-out motion of each body" not in plain
    assert "## Metrics" not in create_card("action-prior", **arguments).text


# --- how a policy sees and hears --------------------------------------------------------------------------------------

GATES = {"layers.0.memory_gate": 1.0, "layers.3.memory_gate": 0.0, "layers.3.words_gate": 0.04321}
BACKBONE = {"source": "hub", "name": "owner/backbone", "sha256": "ab" * 32}
INTERLEAVED = {"expert_layers": ["vision_language", "vision"] * 2, "tap_layers": [1, 2, 3, 4]}


def policy_config(fusion: str, layers: dict[str, Any] | None = None, **fields: Any) -> PriorVLAConfig:
    expert = {"expert_layers": ["motion"] * 2, **(layers or {})}
    return PriorVLAConfig(expert=expert, fusion=fusion, backbone_layers=4, backbone=BACKBONE, **fields)


def card_text(config: PriorVLAConfig, bodies: list[Any], **values: Any) -> str:
    return create_card(kind_of(config), config=config, embodiments=bodies, license="mit", **values).text


@pytest.mark.parametrize(
    ("fusion", "says"),
    [
        ("latent", "one vector z'"),
        ("cross", "cross-attention of their own"),
        ("joint", "keys and values that are projected"),
        ("gated", "a stream beside its actions"),
    ],
)
def test_the_card_says_in_a_sentence_what_the_host_means(fusion, says, bodies):
    text = card_text(policy_config(fusion), bodies)
    assert f"**Host `{fusion}`**:" in text and says in text and "what is seen and asked for" in text
    if fusion != "latent":
        blind = card_text(policy_config(fusion, language=False), bodies)
        assert says in blind and "asked for" not in blind.split("## Limits")[0]


def test_the_card_says_which_layers_see_and_which_read_the_instruction(bodies):
    inserted = card_text(policy_config("gated", INTERLEAVED), bodies)
    assert "| 0, 2 | `vision_language` | 1, 3 | images and the instruction |" in inserted
    assert "| 1, 3 | `vision` | 2, 4 | images, never the instruction |" in inserted
    assert "| 0, 1 | `vision` | 4, 4 | images, never" in card_text(policy_config("cross", language=False), bodies)
    assert "| layers of the expert |" not in card_text(policy_config("latent"), bodies)
    assert "are those of a vision-action prior; the" in inserted
    started = card_text(policy_config("gated", INTERLEAVED), bodies, base_model="owner/prior")
    assert "are those of a vision-action prior, inherited; the" in started
    assert "inserted beside" not in card_text(policy_config("gated"), bodies, base_model="owner/prior")


@pytest.mark.parametrize("language", [True, False])
def test_the_card_says_how_the_backbone_was_trained_and_where_its_weights_and_licence_are(language, bodies):
    def told(training: str) -> str:
        return card_text(policy_config("joint", language=language, backbone_training=training), bodies)

    named = "`owner/backbone` (a repository on the Hub, sha256 `abababababababab…`)"
    assert f"{named}. It is frozen and not part of these files" in told("frozen")
    assert f"{named}. Low-rank adapters (LoRA" in told("lora")
    assert f"{named}. All of its weights were trained further, and are part of these files" in told("full")
    ours = "The backbone and the training data have licences of their own."
    assert ours in told("frozen")
    for training in ("lora", "full"):
        assert ours not in told(training)
        assert "trained of the backbone `owner/backbone` derives from weights that have a licence" in told(training)


def test_the_card_has_a_table_of_gates_where_they_are_given(bodies):
    text = card_text(policy_config("gated"), bodies, gates=GATES)
    assert "form `zero`" in text and "`words`: " in text and "`cross`: " not in text
    lines = text.splitlines()
    head = lines.index("| layer | `memory` | `words` |")
    assert lines[head + 1 : head + 4] == ["|--:|--:|--:|", "| 0 | 1 | – |", "| 3 | 0 | 0.04321 |"]
    assert "| layer |" not in card_text(policy_config("gated"), bodies)


def sensitivity(**ratios: tuple[float, float, float]) -> dict[str, float]:
    """Metrics as `LanguageSensitivity.metrics` names them, of (ratio, low, high)."""
    ends = ("", "_low", "_high")
    values = {f"{change}{end}": value for change, told in ratios.items() for end, value in zip(ends, told, strict=True)}
    return {f"language_sensitivity/{name}": value for name, value in {**values, "spread": 0.2}.items()}


FLOOR = (1.0, 0.8, 1.2)
LISTENS = sensitivity(swap=(3.0, 2.1, 4.0), paraphrase=(1.1, 0.9, 1.3), empty=(2.0, 1.5, 2.5), floor=FLOOR)


@pytest.mark.parametrize(
    ("metrics", "answer"),
    [
        (LISTENS, "Yes: with another instruction its actions move 3 times as far as chance moves them. A rewording"),
        (
            sensitivity(swap=(3.0, 2.1, 4.0), paraphrase=(2.5, 2.0, 3.0), floor=FLOOR),
            "But so they do with a rewording of the same instruction",
        ),
        (sensitivity(swap=(1.3, 1.1, 1.6), paraphrase=FLOOR, floor=FLOOR), "No, not measurably: with another"),
        ({**sensitivity(floor=FLOOR), "language_sensitivity/swap_effect": 1.0}, "move and chance does not move them"),
        (sensitivity(paraphrase=FLOOR, floor=FLOOR), "Not known: all observations had the same"),
    ],
)
def test_whether_a_policy_listens_is_said_in_plain_words(metrics, answer, bodies):
    others, heard = listening({"eval_loss": 0.3, **metrics})
    assert others == {"eval_loss": 0.3}
    assert heard is not None and answer in heard.answer
    text = card_text(policy_config("gated"), bodies, metrics={"eval_loss": 0.3, **metrics})
    assert "## Does it listen?" in text and answer in text and "language sensitivity" not in text
    assert "| the same, by chance | 1.00 | 0.80 – 1.20 |" in text


def test_a_policy_of_which_it_was_not_measured_has_no_such_section(bodies):
    assert listening({"eval_loss": 0.3}) == ({"eval_loss": 0.3}, None)
    assert "Does it listen?" not in card_text(policy_config("gated"), bodies, metrics={"eval_loss": 0.3})


def test_info_says_how_a_vision_action_prior_and_a_policy_see_and_hear(save_policy, bodies, tmp_path):
    prior = describe_checkpoint(save_policy(tmp_path / "prior", bodies, fusion="cross", language=False))
    for line in (
        "vision-action prior (rung 2: sight)",
        "  host                        cross",
        "  vision layers               0, 1 of the expert, reading 2, 2 of the backbone",
        "  instruction                 never read",
        "frozen, attached when loading",
    ):
        assert line in prior, line
    folder = save_policy(tmp_path / "policy", bodies, fusion="joint")
    (folder / "metrics.json").write_text(json.dumps(LISTENS))
    policy = describe_checkpoint(folder)
    for line in (
        "policy (rung 3)",
        "  vision_language layers      0, 1 of the expert, reading 1, 2 of the backbone",
        "  another instruction         3.00 (2.10 – 4.00)",
        "  Yes: with another instruction",
    ):
        assert line in policy, line
    assert "never read" not in policy
