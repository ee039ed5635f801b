"""Other words for the same task: politeness, which changes no task, and what a user says means the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Paraphrases = Mapping[str, str | Sequence[str]]  # instruction -> other words for it

TEMPLATES = {"please": "please {}", "now": "now {}", "just": "just {}", "thanks": "{}, thanks"}


def paraphrase_of(instruction: str, turn: int, given: Paraphrases | None = None) -> str:
    """The instruction in other words; another `turn` takes others, where there are some.

    Those `given` for it come first. Without any: "please ...", "now ...", "just ..." or "..., thanks", which keep the
    meaning of every task (our choice); a word that the instruction has already is not said twice.
    """
    if own := (given or {}).get(instruction):
        return own if isinstance(own, str) else own[turn % len(own)]
    said = instruction.lower().replace(",", " ").split()
    usable = [template for word, template in TEMPLATES.items() if word not in said] or list(TEMPLATES.values())
    template = usable[turn % len(usable)]
    sentence = instruction.rstrip(" .!")
    end = instruction[len(sentence) :].strip()
    if not template.startswith("{}") and sentence[1:2].islower():
        sentence = sentence[0].lower() + sentence[1:]
    return template.format(sentence) + end


__all__ = ["TEMPLATES", "Paraphrases", "paraphrase_of"]
