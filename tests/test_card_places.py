"""What people write into a card stays when it is published; what depends on the place is filled in."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.hub_cards.card import create_card
from priorvla.hub_cards.published_card import published_card

EVALUATION = {"environment": "Meta-World", "seed": 3, "tasks": {"drawer-open": {"successes": 7, "trials": 8}}}
# As cards were written before there were marks.
OLD = """---
library_name: priorvla
license: unknown
pipeline_tag: robotics
tags:
- robotics
- priorvla
- vla
---

# Policy

Started from the prior `prior`.

```python
checkpoint = "."  # this repository's id, or the folder that you downloaded it to
```

To go on: `priorvla train --prior FOLDER --dataset DEMONSTRATIONS`.

## Evaluation

Not evaluated in closed loop. Assume nothing about its success until you have measured it.

## Licence

The weights of the action expert are under `unknown`. The backbone has a licence of its own.
"""


@pytest.fixture(scope="module")
def config(bodies) -> PriorVLAConfig:
    names = [body.name for body in bodies]
    dims = {"action_dims": [body.action_dim for body in bodies], "state_dims": [body.state_dim for body in bodies]}
    return PriorVLAConfig(expert={"embodiments": names, **dims}, fusion="joint")


@pytest.fixture
def publish(config, bodies) -> Any:
    """A card as it would be published at a Hub id."""

    def published(card: ModelCard, repo: str | None = "me/policy", **values: Any) -> ModelCard:
        return published_card(config, card, "mit", bodies, 0, repo, values)

    return published


def trained(config: PriorVLAConfig, bodies: Any, **values: Any) -> ModelCard:
    return create_card("vla", config=config, embodiments=bodies, license="unknown", base_model="/data/prior", **values)


def test_a_trained_card_says_where_it_is_what_it_came_from_and_under_which_licence(config, bodies, publish):
    card = publish(trained(config, bodies), base_model="me/prior", name="Mine")
    assert 'checkpoint = "me/policy"  # this' in card.text
    assert "Started from [`me/prior`](https://huggingface.co/me/prior).\n" in card.text
    assert card.text.startswith("\n# Mine\n") and card.data.base_model == "me/prior"
    assert "are under <!-- license -->`mit`<!-- /license -->." in card.text and card.data.license == "mit"


def test_what_somebody_wrote_around_the_places_stays(config, bodies, publish):
    card = trained(config, bodies)
    card.text = card.text.replace("# Vision-language", "![logo](https://example.org/x.png)\n\n# My vision-language")
    card.text = card.text.replace("Started from <!-- base -->", "Gestartet ist sie von <!-- base -->")
    card.text = card.text.replace('checkpoint = "."  #', "checkpoint = '.'  # oder")
    card.text = card.text.replace("## Limits and safety", "## Warning\n\nIt bites.\n\n# Not the title")
    card = publish(card, base_model="me/prior", name="Mine", evaluation=EVALUATION)
    assert card.text.startswith("\n![logo](https://example.org/x.png)\n\n# Mine\n")
    assert "Gestartet ist sie von [`me/prior`](https://huggingface.co/me/prior).\n" in card.text
    assert 'checkpoint = "me/policy"  # oder this repository\'s id' in card.text
    assert "## Warning\n\nIt bites.\n\n# Not the title\n" in card.text


def test_what_somebody_made_it_load_is_left_alone(config, bodies, publish):
    card = trained(config, bodies)
    card.text = card.text.replace('checkpoint = "."', 'checkpoint = "./best"')
    card.text += "\n```python\ncheckpoint = '.'\n```\n"
    text = publish(card).text
    assert 'checkpoint = "./best"' in text and "checkpoint = '.'" in text and "me/policy" not in text


def test_commands_and_code_about_other_checkpoints_are_left_alone(config, bodies, publish):
    card = trained(config, bodies)
    told = "Made by `priorvla train --prior you/prior`; adapt it by `priorvla finetune --base you/policy`.\n"
    card.text += f'\n{told}\n```python\nbase = "you/other"\n```\n'
    text = publish(card, base_model="me/prior").text
    assert told in text and 'base = "you/other"' in text and 'checkpoint = "me/policy"' in text


def test_an_evaluation_takes_its_place_and_the_next_one_takes_it_over(config, bodies, publish):
    card = publish(trained(config, bodies), evaluation=EVALUATION)
    assert "Not evaluated" not in card.text and "| drawer-open | 7 / 8 | 88 % | 53 – 98 % |" in card.text
    result = card.data.eval_results[0]
    assert (result.metric_value, result.metric_args["trials"]) == (87.5, 8)
    assert card.data.model_name == "Vision-language-action policy for small, large"
    again = {**EVALUATION, "tasks": {"door-open": {"successes": 1, "trials": 2}}}
    card = publish(card, evaluation=again)
    assert "drawer-open" not in str(card) and "| door-open | 1 / 2 |" in card.text
    assert card.text.count("<!-- evaluation -->") == 1


def test_a_card_without_a_place_for_an_evaluation_says_how_to_make_one(config, bodies, publish):
    card = trained(config, bodies)
    card.text = card.text.replace("<!-- evaluation -->", "")
    card.text = card.text.replace("Not evaluated in closed loop.", "Tried once.")
    with pytest.raises(ValueError, match="put <!-- evaluation --> and <!-- /evaluation -->"):
        publish(card, evaluation=EVALUATION)
    assert "Tried once." in publish(card).text


def test_a_card_of_before_there_were_marks_is_filled_in_too(publish):
    card = publish(ModelCard(OLD), base_model="me/prior", evaluation=EVALUATION)
    assert "Started from the prior [`me/prior`](https://huggingface.co/me/prior)." in card.text
    assert 'checkpoint = "me/policy"  #' in card.text and "--prior me/policy --dataset" in card.text
    assert "| drawer-open | 7 / 8 |" in card.text and "Not evaluated" not in card.text
    assert "expert are under <!-- license -->`mit`<!-- /license -->. The backbone" in card.text


def test_a_card_that_is_published_again_elsewhere_names_the_new_place_and_the_new_base(config, bodies, publish):
    first = publish(trained(config, bodies), base_model="me/prior")
    second = publish(first, repo="you/copy", base_model="you/prior")
    assert 'checkpoint = "you/copy"' in second.text and "me/" not in second.text
    assert "[`you/prior`](https://huggingface.co/you/prior)" in second.text and second.data.base_model == "you/prior"
    assert publish(second, repo=None).text == second.text, "in a folder it goes on to name the repository"
