"""The Hub's identifiers of licences: a card with another one is refused there, and so it is here, earlier."""

from __future__ import annotations

from typing import Any

UNKNOWN = "unknown"  # what a run's card says before somebody has decided

# https://huggingface.co/docs/hub/repositories-licenses
_LISTED = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
unlicense wtfpl zlib
"""
LICENSES = frozenset(_LISTED.split())


def require_license(license: Any, *, decided: bool = False) -> None:  # noqa: A002, the Hub's word for it
    """Raises ValueError when it is no identifier of the Hub; `unknown` too, when it must be `decided`."""
    if not isinstance(license, str) or license not in LICENSES:
        raise ValueError(
            f"license={license!r}: name the licence by the Hub's identifier, such as 'apache-2.0'; one that the Hub "
            "does not list is 'other'"
        )
    if decided and license == UNKNOWN:
        raise ValueError(
            "license is missing ('unknown'): nobody may use what has none; name it, for example license='apache-2.0'"
        )


__all__ = ["LICENSES", "UNKNOWN", "require_license"]
