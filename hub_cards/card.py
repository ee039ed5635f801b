"""Model cards: a checkpoint's README, with metadata that the Hub understands and a snippet that runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration.embodiment import Embodiment
from .checkpoints import CardKind, is_hub_id, split_revision
from .embodiment_facts import describe_embodiment, example_state
from .intervals import wilson_interval
from .listening import listening
from .policy_facts import GATES, gate_table, host_sentence, layer_groups
from .prior_metrics import metrics_by_body
from .privacy import private_findings, scrub
from .report import format_value
from .versions import installed_versions

CARD_FILE = "README.md"
LIBRARY = "priorvla"
TEMPLATES = Path(__file__).parent / "templates"
KIND_TEMPLATES = {"action-prior": "action_prior.md", "vision-action-prior": "vision_action_prior.md", "vla": "vla.md"}
KIND_TITLES = {
    "action-prior": "Action prior",
    "vision-action-prior": "Vision-action prior",
    "vla": "Vision-language-action policy",
}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def create_card(
    kind: CardKind,
    *,
    config: Any,
    embodiments: Sequence[Embodiment],
    license: str,  # noqa: A002, the Hub's word for it
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    name: str | None = None,
    parameters: int | None = None,
    gates: Mapping[str, float] | None = None,
) -> ModelCard:
    """The card of a checkpoint. Absolute paths and secrets in any argument are scrubbed (see `privacy.scrub`).

    Args:
        kind: `action-prior` (rung 1), `vision-action-prior` (rung 2) or `vla` (rung 3); see `kind_of`.
        config: the model's configuration (`ActionPriorConfig` or `PriorVLAConfig`); shapes in the card come from it.
        embodiments: in the order of the model's embodiment id.
        license: the Hub's identifier of the weights' licence, for example `apache-2.0`.
        training: the recipe, names to values (nested once at most); its key `versions` holds library versions, by
            default those installed now.
        metrics: names to numbers, for example a validation loss; a prior's `measure/body` become a table, a policy's
            `language_sensitivity/...` the answer to whether it listens.
        evaluation: closed-loop results: `{"environment": str, "tasks": {task: {"successes": int, "trials": int}}}`;
            every other key is printed as part of the protocol. Intervals are computed here.
        datasets: Hub ids or local folders; a local folder is named by its last component and stays out of the header.
        base_model: Hub id or local folder of the checkpoint that this one started from.
        name: the checkpoint's name, or its Hub id. Default: what it is and for which robot.
        parameters: number of saved parameters.
        gates: a policy's gates by name, `PriorVLAModel.gate_values()`.

    Raises:
        ValueError: on an unknown kind, no embodiment, a missing or malformed licence, impossible counts, or metadata
            that huggingface_hub does not read back.
    """
    if kind not in KIND_TEMPLATES:
        raise ValueError(f"card kind {kind!r} is unknown, use one of {', '.join(KIND_TEMPLATES)}")
    if not embodiments:
        raise ValueError("a card needs at least one embodiment: pass those of the checkpoint's processor")
    _require_license(license)
    title = scrub(name) if name else f"{KIND_TITLES[kind]} for {', '.join(entry.name for entry in embodiments)}"
    tasks = _evaluated_tasks(evaluation)
    hub_datasets, local_datasets = _split_sources(datasets)
    hub_bases, local_bases = _split_sources([base_model] if base_model else [])
    backbone = dict(getattr(config, "backbone", None) or {})
    if kind != "action-prior" and backbone.get("source") == "hub":
        hub_bases.append(backbone["name"])
    data = ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag="robotics",
        tags=["robotics", LIBRARY, kind, *(entry.name for entry in embodiments)],
        datasets=hub_datasets or None,
        base_model=(hub_bases if len(hub_bases) > 1 else hub_bases[0]) if hub_bases else None,
        model_name=title if tasks else None,
        eval_results=_eval_results(scrub(dict(evaluation or {})), tasks) if tasks else None,
    )
    others, heard = listening(scrub(dict(metrics or {})))
    others, measured = metrics_by_body(others)
    recipe = scrub(dict(training or {}))
    versions = recipe.pop("versions", None) or installed_versions()
    body = _render(
        KIND_TEMPLATES[kind],
        title=title,
        checkpoint=title if is_hub_id(title) else ".",
        config=config,
        embodiments=[describe_embodiment(entry) for entry in embodiments],
        first=embodiments[0],
        example_state=example_state(embodiments[0]),
        architecture=_architecture(config, parameters),
        backbone=scrub(backbone),
        recipe=_flattened(recipe),
        versions=versions,
        metrics=_flattened(others),
        measured=measured,
        listening=heard,
        tasks=tasks,
        environment=scrub((evaluation or {}).get("environment")),
        protocol=_flattened(scrub({k: v for k, v in (evaluation or {}).items() if k not in ("environment", "tasks")})),
        datasets=hub_datasets,
        local_datasets=local_datasets,
        base_model=(local_bases or hub_bases)[0] if base_model else None,
        base_model_on_hub=bool(base_model and not local_bases),
        license=license,
        **({} if kind == "action-prior" else _sight(config, gates)),
    )
    # The body is a value and not a template here, so that braces in somebody's task name are only text.
    card = ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body)
    card.text = card.text.rstrip() + "\n"
    validate_card(card)
    return card


def load_card(source: str | Path) -> ModelCard:
    """The card of a checkpoint folder, of a README file, or of a repository on the Hub (`owner/name`).

    Raises:
        FileNotFoundError: when a local folder has no README.md, or a path does not exist and is no Hub id.
    """
    path = Path(source)
    if path.is_dir():
        path = path / CARD_FILE
    if path.is_file():
        return ModelCard.load(path)
    if isinstance(source, str) and is_hub_id(source):
        return ModelCard.load(source)
    raise FileNotFoundError(f"{path}: no model card there, pass a checkpoint's folder or a Hub id such as 'owner/name'")


def validate_card(card: ModelCard) -> None:
    """Reads the card back through huggingface_hub's own parsers and checks what we promise. Needs no network.

    Raises:
        ValueError: naming the metadata field, when it is missing, differs once read back, or when the card holds an
            absolute path or a secret.
    """
    again = ModelCard(str(card))
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError(
            "huggingface_hub reads other metadata back than were written: use plain strings, numbers, lists"
        )
    for field, expected in (("library_name", LIBRARY), ("pipeline_tag", "robotics")):
        if card.data.get(field) != expected:
            raise ValueError(f"the card's {field} is {card.data.get(field)!r}, it must be {expected!r}")
    _require_license(card.data.get("license"))
    for finding in private_findings(str(card)):
        raise ValueError(f"the card holds something private, {finding}: remove it from the values that it is made of")


def _require_license(license: Any) -> None:  # noqa: A002
    if not isinstance(license, str) or not _LICENSE.fullmatch(license):
        raise ValueError(f"license={license!r}: name the licence by the Hub's identifier, such as 'apache-2.0'")


def _evaluated_tasks(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row a task and, for several, one for all together; rates and Wilson intervals computed from the counts."""
    results = dict((evaluation or {}).get("tasks", {}))
    if len(results) > 1:
        totals = {key: sum(result[key] for result in results.values()) for key in ("successes", "trials")}
        results["all tasks"] = totals
    rows = []
    for task, result in results.items():
        successes, trials = int(result["successes"]), int(result["trials"])
        low, high = wilson_interval(successes, trials)
        rows.append(
            {
                "task": scrub(task),
                "successes": successes,
                "trials": trials,
                "rate": successes / trials,
                "interval": [round(low, 4), round(high, 4)],
            }
        )
    return rows


def _eval_results(evaluation: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    environment = str(evaluation.get("environment") or "simulation")
    return [
        EvalResult(
            task_type="robotics",
            task_name="closed-loop control",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", environment.lower()).strip("-") or "simulation",
            dataset_name=environment,
            dataset_config=row["task"],
            metric_type="success_rate",
            metric_name="Success rate, %",
            metric_value=round(100 * row["rate"], 2),
            metric_args={key: row[key] for key in ("successes", "trials", "interval")},
        )
        for row in tasks
    ]


def _architecture(config: Any, parameters: int | None) -> dict[str, str]:
    expert = config.expert
    facts = {
        "parameters saved": f"{parameters / 1e6:.2f} M" if parameters else None,
        "chunk": f"{expert.chunk_size} actions",
        "expert": f"{len(expert.expert_layers)} layers ({', '.join(dict.fromkeys(expert.expert_layers))}), "
        f"{expert.hidden_size} wide",
        "latent": f"{expert.latent_dim} dimensions" if getattr(config, "predicts_latent", True) else None,
        "denoising steps": str(config.num_inference_steps),
        "host": getattr(config, "fusion", None),
    }
    return {name: value for name, value in facts.items() if value}


def _sight(config: Any, gates: Mapping[str, float] | None) -> dict[str, Any]:
    """How a policy or a vision-action prior comes to know what its backbone sees."""
    return {
        "host": host_sentence(config),
        "layers": layer_groups(config),
        "gates": gate_table(gates) if gates else None,
        "gate_words": GATES,
    }


def _flattened(facts: Mapping[str, Any]) -> dict[str, str]:
    """`{"optimizer": {"lr": 1e-3}}` as `{"optimizer lr": "0.001"}`; names as words, values as people read them."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        words = str(name).replace("_", " ")
        if isinstance(value, Mapping):
            flat.update({f"{words} {key}": text for key, text in _flattened(value).items()})
        else:
            flat[words] = format_value(value)
    return flat


def _split_sources(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hub ids, without revisions, and the last components of everything that is or looks like a local folder."""
    on_hub: list[str] = []
    local: list[str] = []
    for source in sources:
        name, _ = split_revision(str(source))
        if is_hub_id(name) and not Path(source).exists():
            on_hub.append(name)
        else:
            local.append(scrub(Path(source).name or "local data"))
    return on_hub, local


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _table_cell
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _table_cell(value: Any) -> str:
    """Text that stays within its cell of a Markdown table, and is text there."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


__all__ = ["create_card", "load_card", "validate_card"]
