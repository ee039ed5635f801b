"""What a family of generative models expects around images and words, as text: its chat template's order, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

PROMPTS = ("chat", "raw")
WORDS = "{}"  # where a text template has the instruction

_MARK = "the words stand here"


class PromptFormat(NamedTuple):
    """`[start] ([before] image [after]) * C [text_template]`, in which `{}` stands for the instruction."""

    start: str = ""
    before: str = ""
    after: str = ""
    text_template: str = WORDS
    name: str = "raw"  # one of PROMPTS


def chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template that lies with a backbone, in any of the places where transformers has written it."""
    for file in (folder / "chat_template.json", folder / "chat_template.jinja"):  # a processor's, which knows images
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            return str(json.loads(text)["chat_template"]) if file.suffix == ".json" else text
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None


def first_token(tokenizer: Any) -> str:
    """The token that a tokenizer puts before every text, "" where it puts none."""
    bos = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else ""


def chat_format(tokenizer: Any, template: str, placeholder: str, raw: PromptFormat) -> PromptFormat:
    """A chat template's order for one message of images and then words, up to where the model would answer.

    Args:
        placeholder: what the template writes for an image.
        raw: whose `before` and `after` stand around every image: templates leave that to processors.

    Raises:
        ValueError: when the template writes something else than images, all in the same way, followed by words.
    """
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": _MARK}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    parts = rendered.split(placeholder)
    if len(parts) != 3 or parts[2].count(_MARK) != 1:
        raise ValueError(
            f"the chat template makes {rendered!r} of two images and a text, expected {placeholder!r} twice and then "
            "the text: use prompt='raw'"
        )
    start, between, rest = parts
    ahead, behind = rest.split(_MARK)
    if not ahead.startswith(between):
        raise ValueError(
            f"the chat template makes {rendered!r} of two images and a text: it does not treat every image alike, use "
            "prompt='raw'"
        )
    first = first_token(tokenizer)
    start = start if start.startswith(first) else first + start
    words = ahead.removeprefix(between) + WORDS + behind
    return PromptFormat(start, raw.before, raw.after + between, words, "chat")


__all__ = ["PROMPTS", "WORDS", "PromptFormat", "chat_format", "chat_template", "first_token"]
