"""A checkpoint that brings its code: `trust_remote_code=True` then loads it where this package is not installed.

transformers copies a repository's modules from one folder and follows only `from .x import y` in it. So everything that
a checkpoint's classes need of this package goes flat into its folder, and relative imports are rewritten to match.
Where the package is installed and imported, its own classes are used and these files are not even read.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED_ROOMS = ("configuration", "modeling_priorvla")  # what a model is; nothing that trains, publishes or deploys

# Where the Auto classes find ours: module (inside the package) and class, by what config.json says it is.
MODEL_CLASSES = {
    "priorvla_action_prior": {
        "AutoConfig": ("configuration/configuration_action_prior.py", "ActionPriorConfig"),
        "AutoModel": ("modeling_priorvla/modeling_action_prior.py", "ActionPriorModel"),
    },
    "priorvla": {
        "AutoConfig": ("configuration/configuration_priorvla.py", "PriorVLAConfig"),
        "AutoModel": ("modeling_priorvla/modeling_priorvla.py", "PriorVLAModel"),
    },
}
PROCESSOR_CLASSES = {"AutoProcessor": ("modeling_priorvla/processing_priorvla.py", "PriorVLAProcessor")}

ORIGIN = "# From the package priorvla (Apache-2.0): this copy lets the checkpoint load where that is not installed.\n"


def bundle_code(folder: Path) -> list[Path]:
    """Writes the modules that the checkpoint in `folder` needs beside its weights, and names its classes in `auto_map`.

    Modules of the same name are replaced. `config.json` gets an `auto_map` for AutoConfig and AutoModel, and
    `processor_config.json`, where there is one, for AutoProcessor. Adapters for every family of backbones are part of
    the code, since any of them may be attached; peft (for `backbone_training="lora"`) and onnx and gguf (for packaged
    backbones) are imported only when they are needed, and are no requirement.

    Returns:
        The modules, sorted by name.

    Raises:
        FileNotFoundError: when `folder` has no config.json.
        ValueError: when that is of none of our models.
    """
    config_file, processor_file = folder / "config.json", folder / "processor_config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file}: code goes with a model's config, save the model there first")
    model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    if model_type not in MODEL_CLASSES:
        raise ValueError(f"{config_file}: model_type {model_type!r} is not one of {', '.join(MODEL_CLASSES)}")
    classes = {config_file: MODEL_CLASSES[model_type]}
    if processor_file.is_file():
        classes[processor_file] = PROCESSOR_CLASSES
    entries = [module for names in classes.values() for module, _ in names.values()]
    written = []
    for name, source in sorted(flat_modules(PACKAGE, entries).items()):
        written.append(folder / name)
        written[-1].write_text(ORIGIN + source, encoding="utf-8")
    for file, names in classes.items():
        _set_auto_map(file, {auto: f"{PurePosixPath(module).stem}.{name}" for auto, (module, name) in names.items()})
    return written


def flat_modules(package: Path, entries: Iterable[str]) -> dict[str, str]:
    """File name -> source of `entries` (`room/module.py` in the folder `package`) and of all that they import of it.

    Raises ValueError where flat files could not stand for the package: two modules of one name, an import that is not
    `from .module import name`, or one that leads out of `BUNDLED_ROOMS`.
    """
    places: dict[str, str] = {}
    sources: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        place = waiting.pop()
        room, name = place.split("/", 1)
        if places.setdefault(name, place) != place:
            raise ValueError(f"{places[name]} and {place} would be one file beside a checkpoint: rename one of them")
        if name in sources:
            continue
        if room not in BUNDLED_ROOMS:
            raise ValueError(
                f"{place} is imported by a model, and only {', '.join(BUNDLED_ROOMS)} go with a checkpoint"
            )
        source = (package / place).read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node, imported in _imports_of_ours(source, place):
            start, end = lines[node.lineno - 1][: node.col_offset], lines[node.lineno - 1][node.col_offset :]
            written = "." * node.level + (node.module or "")
            lines[node.lineno - 1] = start + end.replace(written, f".{PurePosixPath(imported).stem}", 1)
            waiting.append(imported)
        sources[name] = "".join(lines)
    return sources


def _imports_of_ours(source: str, place: str) -> Iterator[tuple[ast.ImportFrom, str]]:
    """The relative imports in a module, and the place (`room/module.py`) that each leads to."""
    room = PurePosixPath(place).parent
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            target = PurePosixPath(*room.parts[: len(room.parts) + 1 - node.level], *parts)
            if len(target.parts) != 2:
                raise ValueError(f"{place}, line {node.lineno}: import from a module, as in 'from .layers import Name'")
            yield node, f"{target}.py"
            continue
        else:
            continue
        if any(name.split(".")[0] == "priorvla" for name in names):
            raise ValueError(f"{place}, line {node.lineno}: import from the package relatively, as in 'from .layers'")


def _set_auto_map(file: Path, auto_map: dict[str, str]) -> None:
    fields = {**json.loads(file.read_text(encoding="utf-8")), "auto_map": auto_map}
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["bundle_code", "flat_modules"]
