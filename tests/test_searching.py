"""Published priors are found by tag, and their cards tell what they know. Against a loopback Hub."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import constants

from priorvla.hub_cards.publishing import publish
from priorvla.hub_cards.searching import PublishedPrior, list_priors
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor


@pytest.fixture
def hub(loopback_hub, monkeypatch, tiny_priors) -> Any:
    """The loopback Hub with priors of two arms, one of them private, a prior that sees, a policy, and other things."""
    monkeypatch.setattr(constants, "ENDPOINT", loopback_hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the tests run offline, but this is their Hub
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token)
    for name in ("arm", "leg"):
        model, bodies = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body(name, 3), "waves", 3, 0)])
        processor = PriorVLAProcessor(embodiments=bodies, chunk_size=tiny_priors.CHUNK)
        facts = {"license": "mit", "private": name == "leg", "metrics": {f"coverage/{name}": 0.8}}
        publish(model, processor, f"me/{name}-prior", **facts)
        if name == "arm":
            publish_seeing(model, processor)
    foreign = loopback_hub.repository("models", "somebody/arm-llama")
    foreign.mkdir(parents=True)
    (foreign / "README.md").write_text("---\ntags:\n- arm\n---\n# A language model\n")
    careless = loopback_hub.repository("models", "somebody/odd-prior")
    careless.mkdir(parents=True)
    header = "tags: [priorvla, action-prior, arm]\nlicense: mit\npriorvla: {metrics: high, embodiments: 3}"
    (careless / "README.md").write_text(f"---\n{header}\n---\n# Odd\n")
    loopback_hub.opened("models", "me/arm-prior").downloads = 7
    loopback_hub.requests.clear()
    return loopback_hub


def publish_seeing(prior: ActionPriorModel, processor: PriorVLAProcessor) -> None:
    options = {"license": "apache-2.0", "private": False, "base_model": "me/arm-prior"}
    for name, language in (("seeing", False), ("policy", True)):
        model = PriorVLAModel.from_action_prior(prior, fusion="joint", language=language)
        publish(model, processor, f"me/arm-{name}", **options)


def test_priors_of_a_body_are_found_with_what_their_cards_tell(hub):
    found = list_priors(embodiment="arm")
    assert [prior.name for prior in found] == ["me/arm-prior", "me/arm-seeing", "somebody/odd-prior"]
    assert found[0] == PublishedPrior(
        "me/arm-prior", "action-prior", ("arm",), "mit", {"coverage/arm": 0.8}, downloads=7, private=False
    )
    assert (found[1].kind, found[1].base_models, found[1].license) == (
        "vision-action-prior",
        ("me/arm-prior",),
        "apache-2.0",
    )
    assert found[2] == PublishedPrior("somebody/odd-prior", "action-prior", license="mit"), "a careless card"
    assert [line for line in hub.requests if line.startswith("GET /api/models")] == ["GET /api/models"]
    assert not [line for line in hub.requests if "/resolve/" in line], "nothing is downloaded"


def test_kind_author_and_name_narrow_the_search(hub):
    assert [prior.name for prior in list_priors("arm", "vision-action-prior")] == ["me/arm-seeing"]
    assert [prior.name for prior in list_priors(kind="vla")] == ["me/arm-policy"]
    assert [prior.name for prior in list_priors(author="somebody")] == ["somebody/odd-prior"]
    assert [prior.name for prior in list_priors(search="leg")] == ["me/leg-prior"]
    assert list_priors("whale") == []
    assert [prior.name for prior in list_priors("robotics")] == [], "a tag, and no body that a card tells of"
    with pytest.raises(ValueError, match=r"'prior' is unknown, use one of action-prior"):
        list_priors(kind="prior")


def test_private_priors_are_found_by_their_owner_alone(hub, monkeypatch):
    assert list_priors("leg")[0].private
    assert list_priors("leg", token="hf_of_somebody") == []
