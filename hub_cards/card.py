"""Model cards: a checkpoint's README, with metadata that the Hub understands and a snippet that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData, RepoCard

from ..configuration.embodiment import Embodiment
from .adapter_facts import adapter_facts
from .card_evaluation import model_index, protocol, task_rows
from .card_ranges import value_ranges
from .card_text import flattened, render
from .checkpoints import CardKind, is_hub_id, split_revision
from .embodiment_facts import describe_embodiment, example_state
from .licenses import require_license
from .listening import listening
from .policy_facts import GATES, gate_table, host_sentence, layer_groups
from .prior_metrics import metrics_by_body
from .privacy import private_findings, scrub
from .versions import installed_versions

CARD_FILE = "README.md"
LIBRARY = "priorvla"
KIND_TEMPLATES = {
    "action-prior": "action_prior.md",
    "vision-action-prior": "vision_action_prior.md",
    "vla": "vla.md",
    "adapter": "adapter.md",
}
KIND_TITLES = {
    "action-prior": "Action prior",
    "vision-action-prior": "Vision-action prior",
    "vla": "Vision-language-action policy",
    "adapter": "Adapter",
}
KIND_TAGS = {"adapter": ("adapter", "lora", "vla")}  # of others, their own name
Card = TypeVar("Card", bound=RepoCard)


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
    adapter: Mapping[str, Any] | None = None,
    plots: Sequence[str] = (),
) -> ModelCard:
    """The card of a checkpoint. Absolute paths and secrets in any argument are scrubbed (see `privacy.scrub`).

    Args:
        kind: `action-prior` (rung 1), `vision-action-prior` (rung 2), `vla` (rung 3), see `kind_of`, or `adapter`.
        config: the model's configuration (`ActionPriorConfig` or `PriorVLAConfig`); shapes in the card come from it.
        embodiments: in the order of the model's embodiment id.
        license: the Hub's identifier of the weights' licence, for example `apache-2.0`.
        training: the recipe, names to values (nested once at most); its key `versions` holds library versions, by
            default those installed now, its key `cost` the hardware and what the run took of it.
        metrics: names to numbers, for example a validation loss; a prior's `measure/body` become a table, a policy's
            `language_sensitivity/...` the answer to whether it listens.
        evaluation: closed-loop results, see `read_evaluation`:
            `{"environment": str, "tasks": {task: {"successes": int, "trials": int}}}`; every other key is printed as
            part of the protocol. Intervals are computed here.
        datasets: Hub ids or local folders; a local folder is named by its last component and stays out of the header.
        base_model: Hub id or local folder of the checkpoint that this one started from; an adapter names its own, and
            so does the configuration of a model that an adapter was merged into.
        name: the checkpoint's name, or its Hub id. Default: what it is and for which robot.
        parameters: number of saved parameters.
        gates: a policy's gates by name, `PriorVLAModel.gate_values()`.
        adapter: what `adapter_config.json` holds; a policy's card with it is an adapter's.
        plots: file names of pictures that lie beside the card and are shown, see `card_pictures.PLOTS`.

    Raises:
        ValueError: on an unknown kind, no embodiment, a missing or unlisted licence, impossible counts, or metadata
            that huggingface_hub does not read back.
    """
    if kind not in KIND_TEMPLATES:
        raise ValueError(f"card kind {kind!r} is unknown, use one of {', '.join(KIND_TEMPLATES)}")
    if not embodiments:
        raise ValueError("a card needs at least one embodiment: pass those of the checkpoint's processor")
    require_license(license)
    if adapter is not None:
        kind = "adapter"
    own: dict[str, Any] = {} if kind == "action-prior" else _sight(config, gates)
    bodies = [
        {"id": index, **describe_embodiment(entry), "ranges": value_ranges(entry)}
        for index, entry in enumerate(embodiments)
    ]
    if kind == "adapter":
        facts, order = _adapter(adapter, embodiments, parameters)
        embodiments, bodies = [embodiments[index] for index in order], [bodies[index] for index in order]
        base_model = base_model or (adapter or {}).get("base_model_name_or_path")
        own |= facts
    elif base_model is None:
        base_model = getattr(config, "base_model", None)
    title = scrub(name) if name else f"{KIND_TITLES[kind]} for {_named(embodiments[: own.get('inherited') or None])}"
    rows = task_rows(evaluation)
    hub_datasets, local_datasets = _split_sources(datasets)
    hub_bases, local_bases = _split_sources([base_model] if base_model else [])
    backbone = dict(getattr(config, "backbone", None) or {})
    if kind not in ("action-prior", "adapter") and backbone.get("source") == "hub":
        hub_bases.append(backbone["name"])
    data = ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag="robotics",
        tags=["robotics", LIBRARY, *KIND_TAGS.get(kind, (kind,)), *(entry.name for entry in embodiments)],
        datasets=hub_datasets or None,
        base_model=(hub_bases if len(hub_bases) > 1 else hub_bases[0]) if hub_bases else None,
        base_model_relation="adapter" if kind == "adapter" and base_model and not local_bases else None,
        model_name=title if rows else None,
        eval_results=model_index(evaluation, rows) if evaluation and rows else None,
    )
    others, heard = listening(scrub(dict(metrics or {})))
    others, measured = metrics_by_body(others)
    recipe = scrub(dict(training or {}))
    versions = recipe.pop("versions", None) or installed_versions()
    cost = recipe.pop("cost", None) or {}
    text = render(
        KIND_TEMPLATES[kind],
        title=title,
        checkpoint=title if is_hub_id(title) else ".",
        config=config,
        embodiments=bodies,
        first=embodiments[0],
        example_state=example_state(embodiments[0]),
        architecture=_architecture(config, parameters),
        backbone=scrub(backbone),
        recipe=flattened({key: value for key, value in recipe.items() if value is not None}),
        cost=flattened(cost),
        versions=versions,
        metrics=flattened(others),
        measured=measured,
        listening=heard,
        tasks=rows,
        environment=scrub((evaluation or {}).get("environment")),
        protocol=protocol(evaluation),
        datasets=hub_datasets,
        local_datasets=local_datasets,
        base_model=(local_bases or hub_bases)[0] if base_model else None,
        base_model_on_hub=bool(base_model and not local_bases),
        license=license,
        plots=plots,
        **own,
    )
    card = compose_card(ModelCard, data, text)
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


def compose_card(card_class: type[Card], data: Any, text: str) -> Card:
    """A card of a header and the Markdown below it."""
    # The text is a value and not a template here, so that braces in somebody's task name are only text.
    card = card_class.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=text)
    card.text = card.text.rstrip() + "\n"
    return card


def validate_card(card: ModelCard) -> None:
    """Reads the card back through huggingface_hub's own parsers and checks what we promise. Needs no network.

    Raises:
        ValueError: naming the metadata field, when it is missing, differs once read back, or when the card holds an
            absolute path or a secret.
    """
    require_readable(card)
    for field, expected in (("library_name", LIBRARY), ("pipeline_tag", "robotics")):
        if card.data.get(field) != expected:
            raise ValueError(f"the card's {field} is {card.data.get(field)!r}, it must be {expected!r}")
    require_license(card.data.get("license"))


def require_readable(card: RepoCard) -> None:
    """Raises ValueError when huggingface_hub reads a card's header back otherwise, or it holds something private."""
    again = type(card)(str(card))
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError(
            "huggingface_hub reads other metadata back than were written: use plain strings, numbers, lists"
        )
    for finding in private_findings(str(card)):
        raise ValueError(f"the card holds something private, {finding}: remove it from the values that it is made of")


def _named(embodiments: Sequence[Embodiment]) -> str:
    return ", ".join(entry.name for entry in embodiments)


def _adapter(
    adapter: Mapping[str, Any] | None, embodiments: Sequence[Embodiment], parameters: int | None
) -> tuple[dict[str, Any], list[int]]:
    """What the template is told of an adapter, and the bodies' indices in its order: first those it was trained for."""
    if adapter is None:
        raise ValueError("the card of an adapter needs adapter=, what its adapter_config.json holds")
    facts = adapter_facts(adapter, [entry.name for entry in embodiments], parameters)
    trained = facts["bodies"]
    order = [*trained, *(index for index in range(len(embodiments)) if index not in trained)]
    return {"adapter": facts, "inherited": len(trained)}, order


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


__all__ = [
    "CARD_FILE",
    "LIBRARY",
    "compose_card",
    "create_card",
    "load_card",
    "require_license",
    "require_readable",
    "validate_card",
]
