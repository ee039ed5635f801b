"""Nothing private leaves with a checkpoint: absolute paths and secrets are found, and removed or refused.

`scrub` cleans what we write ourselves (a card's values, after hours of training: no reason to fail); `private_findings`
and `require_public` look through what somebody is about to share, and say where the private thing stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

REMOVED = "[removed]"

# A path needs two components to be one: "/think" in a chat template is none. URLs and "owner/name" are not absolute.
_PATH = re.compile(
    r"""(?x)
    file://[^\s"'`)\]>|]+
    | (?<![\w./~]) ~? (?:/[\w.@+=,-]+){2,} /?
    | (?<![\w./~:]) / (?:/[\w.@+=,-]+){2,} /?
    | (?<![\w./~]) ~ /[\w.@+=,-]+ /?
    | (?<!\w) [A-Za-z]:\\ [^\s"'`)\]>|]+
    | (?<!\\) \\\\ [\w.-]{2,} \\ [\w.$-] [^\s"'`)\]>|]*
    """
)
_SECRET = re.compile(
    r"""(?x)
    \b hf_[A-Za-z0-9]{20,}
    | \b sk-[A-Za-z0-9_-]{20,}
    | \b gh[pousr]_[A-Za-z0-9]{20,} | \b github_pat_[A-Za-z0-9_]{20,}
    | \b glpat-[A-Za-z0-9_-]{20,}
    | \b AKIA[0-9A-Z]{16}\b
    | \b AIza[A-Za-z0-9_-]{30,}
    | \b eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+
    | \b xox[abprs]-[A-Za-z0-9-]{10,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----
    | (?i: \b bearer\s+[A-Za-z0-9._~+/-]{16,}=* )
    | (?<=://) [^/\s:@]+ : [^/\s@]+ (?=@)
    | (?i: (?<![a-z]) (?:\w*_)? (?:password|passwd|secret|(?:api|secret|private|access)[_-]?key|
      (?:access|auth|hub|hf|wandb|api)[_-]?token) ["']? \s* [:=] \s* )
      (?: "[^"\s]{6,}" | '[^'\s]{6,}' | (?=[A-Za-z_-]*\d) [A-Za-z0-9_+/-]{16,} )
    """
)
_SECRET_NAME = re.compile(
    r"(?i)(^|[_\-. ])(password|passwd|secret|credentials?|api[_-]?key|secret[_-]?key|private[_-]?key"
    r"|(access|auth|hub|hf|push_to_hub|wandb|api)[_-]?token)$|^token$"
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # data, where "/a/b" means nothing
_PIECE = 1 << 20  # characters that are read at a time


def scrub(value: Any, name: str = "") -> Any:
    """`value` (a string, or dicts and lists of values) for a public card.

    An absolute path keeps its last component only, a secret becomes `[removed]`, as does the value of a name like
    `hub_token` or `password`. Everything else is returned as it is.
    """
    if isinstance(value, Mapping):
        return {scrub(key): scrub(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(entry, name) for entry in value]
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return value
    if value and _SECRET_NAME.search(name):
        return REMOVED
    value = _SECRET.sub(REMOVED, value)
    return _PATH.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1], value)


def private_findings(text: str) -> list[str]:
    """Absolute paths and secrets in `text`, in order; secrets are shown by their first four characters only."""
    found = [(match.start(), f"absolute path {match.group()!r}") for match in _PATH.finditer(text)]
    found += [(match.start(), f"secret {match.group()[:4]!r}…") for match in _SECRET.finditer(text)]
    return [finding for _, finding in sorted(found)]


def require_public(folder: str | Path) -> None:
    """Raises ValueError naming file and finding when a text in `folder` holds something private.

    Text is whatever reads as UTF-8, and the metadata of safetensors (ValueError also when one is broken). Vocabularies
    are not searched.
    """
    folder = Path(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _VOCABULARIES):
        for finding in _file_findings(path):
            raise ValueError(f"{path.relative_to(folder)} holds something private, {finding}: remove it before sharing")


def _file_findings(path: Path) -> Iterator[str]:
    if path.suffix == ".safetensors":
        yield from _json_findings(_metadata(path), "")
        return
    text = _text(path)
    if text is None:
        return
    try:
        content = json.loads(text) if path.suffix == ".json" else text
    except ValueError:
        content = text
    yield from private_findings(text) if content is text else _json_findings(content, "")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): save it again") from None


def _text(path: Path) -> str | None:
    """What is in a file of text; None of another, of which no more is read than it takes to know."""
    pieces = []
    try:
        with open(path, encoding="utf-8") as file:
            while piece := file.read(_PIECE):
                if "\0" in piece:
                    return None
                pieces.append(piece)
    except UnicodeDecodeError:
        return None
    return "".join(pieces)


def _json_findings(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, entry in value.items():
            if isinstance(entry, str) and entry not in ("", REMOVED) and _SECRET_NAME.search(name):
                yield f"the value of key {name!r}"
            yield from (f"{finding} as a key" for finding in private_findings(name))
            yield from _json_findings(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _json_findings(entry, key)
    elif isinstance(value, str):
        yield from (f"{finding} in key {key!r}" for finding in private_findings(value))


__all__ = ["private_findings", "require_public", "scrub"]
