"""Which text is private, and what is left of it when it has been scrubbed."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from priorvla.hub_cards.privacy import private_findings, require_public, scrub

SECRET = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "at /home/a/b.txt",
            "C:\\Users\\me\\x",
            "~/runs/x",
            "file:///a/b",
            "dir:/data/x",
            SECRET,
            "https://me:pw@host/x",
        ),
        *("//home/me/x", "</home/me/data>", "\\\\server\\share\\me", "AIza" + "Sy0" * 11, "glpat-" + "a1" * 10),
        *(f"wandb_api_key: {'0a' * 20}", "password = 'hunter2secret'", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc"),
    ],
)
def test_private_text_is_found_and_scrubbed(text):
    assert private_findings(text)
    assert not private_findings(scrub(text))


@pytest.mark.parametrize(
    "text",
    [
        *("https://arxiv.org/abs/2606.26095", "owner/name", "and/or", "./runs/x", "a/b/c.py", "</think>", "10/20"),
        *("commit " + "0a" * 20, 'api_key = os.environ["KEY"]', "password: str", "pad_token: [PAD]", "<b></b></a>"),
    ],
)
def test_public_text_is_left_alone(text):
    assert not private_findings(text)
    assert scrub(text) == text


def test_names_of_tokens_that_are_no_secrets_are_kept():
    assert scrub({"num_soft_tokens": "2", "pad_token": "[PAD]"}) == {"num_soft_tokens": "2", "pad_token": "[PAD]"}


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "notes.txt", "plot.svg", "special_tokens_map.json", "model.safetensors.index.json"),
        *(".env", "deep/er/broken.json"),
    ],
)
def test_every_file_of_text_is_searched(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for text in (f"x {SECRET}", '{"from": "/home/me/data"}', '{"/home/me/data": 1}'):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="holds something private"):
            require_public(tmp_path)


def test_what_is_written_beside_weights_is_searched(tmp_path):
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt", "config": "my/data"})
    require_public(tmp_path)
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors", metadata={"ss_dataset_dirs": "/home/me/data"})
    with pytest.raises(ValueError, match=r"model.safetensors .* '/home/me/data' in key 'ss_dataset_dirs'"):
        require_public(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read as safetensors"):
        require_public(tmp_path)


def test_vocabularies_and_weights_are_no_text(tmp_path):
    (tmp_path / "vocab.txt").write_text("/home/me/data")
    save_file({"a": np.frombuffer(b"/home/me/data.", dtype=np.uint8)}, tmp_path / "model.safetensors")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff /home/me/data")
    require_public(tmp_path)
