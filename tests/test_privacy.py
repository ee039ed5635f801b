"""Which text is private, and what is left of it when it has been scrubbed."""

from __future__ import annotations

import pytest

from priorvla.hub_cards.privacy import private_findings, scrub

SECRET = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.mark.parametrize(
    "text",
    ["at /home/a/b.txt", "C:\\Users\\me\\x", "~/runs/x", "file:///a/b", "dir:/data/x", SECRET, "https://me:pw@host/x"],
)
def test_private_text_is_found_and_scrubbed(text):
    assert private_findings(text)
    assert not private_findings(scrub(text))


@pytest.mark.parametrize(
    "text", ["https://arxiv.org/abs/2606.26095", "owner/name", "and/or", "./runs/x", "a/b/c.py", "</think>", "10/20"]
)
def test_public_text_is_left_alone(text):
    assert not private_findings(text)
    assert scrub(text) == text


def test_names_of_tokens_that_are_no_secrets_are_kept():
    assert scrub({"num_soft_tokens": "2", "pad_token": "[PAD]"}) == {"num_soft_tokens": "2", "pad_token": "[PAD]"}
