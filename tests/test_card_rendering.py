"""Every kind of card, rendered as the Hub renders Markdown: tables are tables, and nothing of a template is left."""

from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import RepoCard

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.embodiment_registry import load_embodiment
from priorvla.hub_cards.card import create_card
from priorvla.hub_cards.card_pictures import PLOTS
from priorvla.hub_cards.dataset_card import create_dataset_card

markdown_it = pytest.importorskip("markdown_it")

METRICS = {
    "eval_loss": 0.3,
    **{f"{measure}/small": 0.5 for measure in ("velocity_loss", "coverage", "jerk_ratio")},
    **{f"language_sensitivity/{what}{end}": 2.0 for what in ("swap", "floor") for end in ("", "_low", "_high")},
}
FACTS: dict[str, Any] = {
    "license": "mit",
    "metrics": METRICS,
    "parameters": 123456,
    "base_model": "me/base",
    "datasets": ["me/data", "mine"],
    "training": {"steps": 7, "optimizer": {"lr": 1e-3}, "cost": {"minutes": 1.5, "device": "a GPU"}},
    "evaluation": {"environment": "Meta-World", "seed": 3, "tasks": {"a | b": {"successes": 1, "trials": 2}}},
    "plots": list(PLOTS),
}
ADAPTER = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": r"(expert|fusion)\.layers\.\d+\..*(q|k)_proj|trained_backbone\.model\.x",
    "modules_to_save": ["expert.tokens", "expert.action_in.projections.1"],
}
GATES = {"layers.0.cross_gate": 0.1, "layers.1.cross_gate": 0.2}


def expert_of(bodies: list[Embodiment]) -> dict[str, Any]:
    dims = {"action_dims": [body.action_dim for body in bodies], "state_dims": [body.state_dim for body in bodies]}
    return {"embodiments": [body.name for body in bodies], **dims, "expert_layers": ["motion", "motion"]}


@pytest.fixture(scope="module")
def cards(bodies) -> dict[str, RepoCard]:
    """A card of every kind with everything in it, and one of every kind with as little as there may be."""
    expert = expert_of(bodies)
    reference = {"source": "hub", "name": "owner/backbone", "sha256": "ab" * 32}
    seeing = {"expert": expert, "backbone": reference, "fusion": "gated"}
    configs = {
        "action-prior": ActionPriorConfig(expert=expert),
        "vision-action-prior": PriorVLAConfig(**seeing, language=False),
        "vla": PriorVLAConfig(**seeing),
        "adapter": PriorVLAConfig(**seeing),
    }
    made: dict[str, RepoCard] = {}
    for kind, config in configs.items():
        own: dict[str, Any] = {"adapter": ADAPTER} if kind == "adapter" else {}
        seen: dict[str, Any] = {} if kind == "action-prior" else {"gates": GATES}
        every: dict[str, Any] = {"config": config, "embodiments": bodies, **own}
        made[kind] = create_card(kind, **every, **seen, **FACTS)
        made[f"bare {kind}"] = create_card(kind, **every, license="mit")
    made["dataset"] = create_dataset_card(
        load_embodiment("franka_eef"),
        tasks={"open | close {{ it }}": 3, "press": 1},
        frames=4000,
        cameras={"front": (48, 64)},
        license="mit",
        origin={"told": "By hand.", "solved": {"press": 0.5}, "noise": 0.1},
        units="metres",
        plots=list(PLOTS),
    )
    made["bare dataset"] = create_dataset_card(bodies[0], tasks={"move": 1}, frames=9)
    return made


KINDS = ["action-prior", "vision-action-prior", "vla", "adapter", "dataset"]


def as_html(card: RepoCard) -> str:
    """Without the blocks of code."""
    page: str = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    return re.sub(r"(?s)<pre>.*?</pre>", "", page)


@pytest.mark.parametrize("kind", [*KINDS, *(f"bare {kind}" for kind in KINDS)])
def test_tables_are_tables_and_nothing_of_the_template_or_of_markdown_is_left(kind, cards):
    page = as_html(cards[kind])
    headers = re.findall(r"(?m)^\|[ :|-]+\|$", cards[kind].text)
    assert page.count("<table>") == len(headers) > 0
    said = re.sub(r"<[^>]+>", "", page.replace("{{ it }}", ""))
    for left in ("{{", "}}", "{%", "%}", "|--", "| ", "](", "**", "```", "None", "<!--"):
        assert left not in said.replace("a | b", "").replace("open | close", ""), left
    for row in re.findall(r"(?s)<tr>(.*?)</tr>", page):
        assert row.count("<td") + row.count("<th") > 1


@pytest.mark.parametrize("kind", [*KINDS, *(f"bare {kind}" for kind in KINDS)])
def test_no_section_is_empty_and_every_part_of_the_page_stands_on_its_own(kind, cards):
    page = as_html(cards[kind])
    sections = re.split(r"<h2>(.*?)</h2>", page)[1:]
    for heading, body in zip(sections[::2], sections[1::2], strict=True):
        code = heading in ("Use", "Citation")  # taken out above
        assert code or len(re.sub(r"<[^>]+>", "", body).strip()) > 20, heading
    assert len(set(sections[::2])) == len(sections[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_shown_with_an_alternative_text_and_a_caption_below(kind, cards):
    paragraph = re.compile(r'<p><img src="(\w+\.png)" alt="([^"]{20,})" /><br>\s*<em>(.{20,})</em></p>')
    shown = paragraph.findall(as_html(cards[kind]))
    assert [name for name, *_ in shown] == re.findall(r"\]\((\w+\.png)\)", cards[kind].text) != []
    assert not re.findall(r"\.png", cards[f"bare {kind}"].text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_has_everything_that_a_reader_looks_for(kind, cards):
    text = cards[kind].text
    for part in ("**It is**", "**It is not**", "## Use", "## Embodiment", "## Limits", "## Licence", "## Citation"):
        assert part in text, part
    for said in ("Hz", "absolute", "nits", "Versions: priorvla"):
        assert said in text, said
    if kind != "dataset":
        assert "### Hardware and cost" in text and "| device | a GPU |" in text
        assert "(https://huggingface.co/datasets/me/data)" in text and "(https://huggingface.co/me/base)" in text
        assert "safety" in text and "| optimizer lr | 0.001 |" in text and r"| a \| b | 1 / 2 | 50 %" in text
        assert "small: " not in text and "| action a0 | " in text, "where the numbers lie"


@pytest.mark.parametrize(
    ("reworded", "said"),
    [
        ((1.05, 0.9, 9.0), "A rewording of the same instruction does not move them measurably."),
        ((1.85, 1.0, 16.1), "Whether wording counts too cannot be told: with a rewording of the same instruction they"),
        ((1.85, 1.5, 2.1), "But so they do with a rewording"),
    ],
)
def test_a_rewording_of_which_too_little_was_seen_is_not_called_without_effect(reworded, said, bodies):
    told = {"swap": (8.0, 5.0, 20.0), "paraphrase": reworded, "floor": (1.0, 0.9, 1.1)}
    metrics = {
        f"language_sensitivity/{change}{end}": value
        for change, values in told.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }
    card = create_card(
        "vla", config=PriorVLAConfig(expert=expert_of(bodies)), embodiments=bodies, license="mit", metrics=metrics
    )
    section = card.text.partition("## Does it listen?")[2]
    assert section.strip().startswith("Yes: with another instruction") and said in section
    assert ("measurably" in section) == ("measurably" in said)
