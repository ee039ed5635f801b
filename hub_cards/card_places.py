"""The places of a card that publishing fills in: they are found again in a card that somebody has edited.

A card is Markdown, and the best ones are finished by hand. So a card is never rendered a second time from recorded
facts (which would lose those words), and it is not searched for our sentences (which people reword). In prose, the
templates put a pair of HTML comments, which nobody sees, around the little that is known late:

    Started from <!-- base -->`prior`<!-- /base -->.

Whatever stands around them may be reworded, moved or translated; without the pair, the card stays as it is. A base that
has its Hub id needs no mark any more, its link is one. In code a comment would be text, and the code itself is the
anchor: the first assignment to `checkpoint` or `base`, and the option of `priorvla train --prior ...` or `priorvla
finetune --base ...`. Cards of before there were marks are known by the sentences that they had.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .checkpoints import is_hub_id

BASE, EVALUATION, LICENSE = "base", "evaluation", "license"
_CODE = re.compile(r"(?ms)^(```.*?^```[^\S\n]*$)")
_CHECKPOINT, _BASE = (re.compile(rf"(?m)^({name} = )(['\"])(.*?)\2") for name in ("checkpoint", "base"))
_TITLE = re.compile(r"(?m)^# .*$")
_TRAIN, _FINETUNE = (re.compile(rf"(\bpriorvla {command} )(\S+)") for command in ("train --prior", "finetune --base"))
_OLD_BASE = re.compile(r"(?m)^(Started from(?: the prior)? )(`[^`\n]+`)(?=\.$)")
_OLD_LICENSE = re.compile(r"(?m)^(The weights(?: of the action expert)? are under )(`[^`\n]+`)")
_OLD_UNEVALUATED = "Not evaluated in closed loop. Assume nothing about its success until you have measured it."


def mark(text: str, place: str) -> str:
    """`text` between the comments that name its place: within a sentence, or a whole section on lines of its own."""
    between = "\n\n" if place == EVALUATION else ""  # a line that begins with a comment is no Markdown
    return f"<!-- {place} -->{between}{text}{between}<!-- /{place} -->"


def with_checkpoint(text: str, repo: str) -> str:
    """The card's snippet and command load from the Hub id `repo`, unless somebody made them load another folder."""
    before = {"FOLDER"}  # what the command is known to name

    def assigned(found: re.Match[str]) -> str:
        if found[3] != "." and not is_hub_id(found[3]):
            return found[0]
        before.add(found[3])
        return f'{found[1]}"{repo}"'

    text = _first(text, _CHECKPOINT, assigned, in_code=True)
    return _TRAIN.sub(lambda found: f"{found[1]}{repo}" if found[2] in before else found[0], text)


def with_base(text: str, base: str, known: str | None = None) -> str:
    """The card names the Hub id `base` as what the checkpoint started from; that of an adapter loads it, too.

    `known`: the Hub id that it named before, if any.
    """
    if "load_adapter(" in text:
        text = _first(text, _BASE, lambda found: f'{found[1]}"{base}"', in_code=True)
        text = _FINETUNE.sub(lambda found: f"{found[1]}{base}", text)
    if _pair(BASE).search(text):
        return _pair(BASE).sub(lambda _: linked(base), text, count=1)
    text = _OLD_BASE.sub(lambda found: f"{found[1]}{linked(base)}", text, count=1)
    return text if known is None else text.replace(linked(known), linked(base))


def linked(repo: str) -> str:
    """A link to a model on the Hub."""
    return f"[`{repo}`](https://huggingface.co/{repo})"


def with_license(text: str, license: str) -> str:  # noqa: A002, the Hub's word for it
    """The card says that the weights are under `license`."""
    named = mark(f"`{license}`", LICENSE)
    if _pair(LICENSE).search(text):
        return _pair(LICENSE).sub(lambda _: named, text, count=1)
    return _OLD_LICENSE.sub(lambda found: f"{found[1]}{named}", text, count=1)


def with_evaluation(text: str, section: str) -> str:
    """The card has `section` where it speaks of closed-loop success.

    Raises ValueError when it has no such place: somebody took it out, or it is the card of a prior.
    """
    if _pair(EVALUATION).search(text):
        return _pair(EVALUATION).sub(lambda _: mark(section, EVALUATION), text, count=1)
    if _OLD_UNEVALUATED not in text:
        raise ValueError(
            f"the card has no place for an evaluation: put <!-- {EVALUATION} --> and <!-- /{EVALUATION} -->, each on a "
            "line of its own, where it should stand"
        )
    return text.replace(_OLD_UNEVALUATED, mark(section, EVALUATION), 1)


def with_title(text: str, title: str) -> str:
    """The card's first heading is `title`."""
    return _first(text, _TITLE, lambda _: f"# {title}", in_code=False)


def _pair(place: str) -> re.Pattern[str]:
    return re.compile(rf"(?s)<!-- {place} -->.*?<!-- /{place} -->")


def _first(text: str, pattern: re.Pattern[str], change: Callable[[re.Match[str]], str], *, in_code: bool) -> str:
    """Changes the first match within blocks of code, or between them."""
    parts = _CODE.split(text)
    for index in range(int(in_code), len(parts), 2):
        if pattern.search(parts[index]):
            parts[index] = pattern.sub(change, parts[index], count=1)
            break
    return "".join(parts)


__all__ = ["linked", "mark", "with_base", "with_checkpoint", "with_evaluation", "with_license", "with_title"]
