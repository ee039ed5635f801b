"""Checkpoints that bring their code: loaded, used and saved again by Python processes that have no priorvla."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_imports

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.hub_cards.bundled_code import bundle_code, flat_modules
from priorvla.hub_cards.privacy import require_public
from priorvla.modeling_priorvla.modeling_action_prior import ActionPriorModel
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.processing_priorvla import PriorVLAProcessor
from priorvla.training.data.trajectory_dataset import expert_dims

Results = dict[str, dict[str, torch.Tensor]]

KINDS = ("action-prior", "vision-action-prior", "policy", "generative-policy")
# What torch, transformers and diffusers bring with them.
PROVIDED = {"PIL", "diffusers", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"}

# What a checkpoint's processor makes of an example, and its model of that. Runs with the package and without.
USE = """
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoProcessor

def use(place, backbone, again=None, **loading):
    attached = {"backbone": backbone} if backbone else {}
    model = AutoModel.from_pretrained(place, **attached, **loading)
    processor = AutoProcessor.from_pretrained(place, **loading)
    random = np.random.default_rng(0)
    states = [random.normal(size=(6, 3)), random.normal(size=(6, 5))]
    actions = [random.normal(size=(6, 4)), random.normal(size=(6, 7))]
    example = {"embodiment": ["small", "large"], "states": states, "actions": actions}
    if backbone:
        example["state"] = [rows[0] for rows in states]
        example["images"] = [{"front": random.integers(0, 256, (28, 28, 3), dtype=np.uint8)} for _ in range(2)]
        example["text"] = ["open the drawer", "press the red button now"]
    batch = processor(**example)
    results = {f"batch.{name}": tensor for name, tensor in batch.items()}
    with torch.no_grad():
        results["loss"] = model(**batch, generator=torch.Generator().manual_seed(0)).loss
    seen = {name: tensor for name, tensor in batch.items() if name not in ("actions", "states")}
    results["chunk"] = model.sample_actions(**seen, generator=torch.Generator().manual_seed(1))
    results["commands"] = torch.tensor(processor.decode_actions(results["chunk"][0], embodiment="small"))
    config = AutoConfig.from_pretrained(place, **loading)
    assert type(config.expert).__name__ == "ExpertConfig" and config.expert.action_dim == 7
    if again is not None:
        model.save_pretrained(again)
        processor.save_pretrained(again)
    return results
"""
USE_WITHOUT_THE_PACKAGE = f"""{USE}
import json, sys
from safetensors.torch import save_file
try:
    import priorvla
except ImportError:
    for place, backbone, again, results in json.loads(sys.argv[1]):
        save_file(use(place, backbone, again, trust_remote_code=True), results)
else:
    sys.exit("priorvla is installed here")
"""


@pytest.fixture(scope="module")
def backbones(tiny_backbone, tiny_smolvlm) -> dict[str, str | None]:
    seen = dict.fromkeys(KINDS, str(tiny_backbone))
    return {**seen, "action-prior": None, "generative-policy": str(tiny_smolvlm)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, bodies, tiny_fields, save_policy, tiny_smolvlm) -> dict[str, Path]:
    """A folder of every kind, with its code."""
    folders = {kind: tmp_path_factory.mktemp("with_code") / kind for kind in KINDS}
    torch.manual_seed(0)
    expert = {**tiny_fields["expert"], **expert_dims(bodies)}
    prior = ActionPriorModel(ActionPriorConfig(expert=expert, encoder=tiny_fields["encoder"]))
    for part in (prior, PriorVLAProcessor(embodiments=bodies, chunk_size=6)):
        part.save_pretrained(folders["action-prior"])
    save_policy(folders["vision-action-prior"], bodies, fusion="gated", language=False)
    save_policy(folders["policy"], bodies)
    save_policy(folders["generative-policy"], bodies, tiny_smolvlm, fusion="joint")
    for folder in folders.values():
        bundle_code(folder)
    return folders


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment of torch, transformers, diffusers and what they require, linked from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib*/python*/site-packages"))
    found, waiting = set(), ["torch", "transformers", "diffusers"]
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name in found:
            continue
        found.add(distribution.name)
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (packages / name).exists():  # several share a folder
                (packages / name).symlink_to(distribution.locate_file(name))
    return folder


@pytest.fixture(scope="module")
def use_without_the_package(tmp_path_factory, environment, backbones) -> Callable[..., Results]:
    """`(places, again={}, **environment)` uses checkpoints of every kind in one new process, saves them to `again`."""

    def use(places: dict[str, str | Path], again: dict[str, Path] | None = None, **settings: str) -> Results:
        scratch = tmp_path_factory.mktemp("elsewhere")
        jobs = [
            (str(place), backbones[kind], again and str(again[kind]), str(scratch / f"{kind}.safetensors"))
            for kind, place in places.items()
        ]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [environment / "bin" / "python", "-c", USE_WITHOUT_THE_PACKAGE, json.dumps(jobs)],
            cwd=scratch,
            env={**variables, "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "cache"), **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Do you wish to run the custom code?" not in done.stdout
        return {kind: load_file(scratch / f"{kind}.safetensors") for kind in places}

    return use


@pytest.fixture(scope="module")
def expected(checkpoints, backbones) -> Results:
    """What the package computes."""
    namespace: dict = {}
    exec(USE, namespace)
    return {kind: namespace["use"](str(folder), backbones[kind]) for kind, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def saved_again(tmp_path_factory) -> dict[str, Path]:
    return {kind: tmp_path_factory.mktemp("again") / kind for kind in KINDS}


@pytest.fixture(scope="module")
def bundled(use_without_the_package, checkpoints, saved_again) -> Results:
    """What the code that lies in the folders computes; the folders of `saved_again` are written by it."""
    return use_without_the_package(checkpoints, saved_again)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_package_batch_loss_chunk_and_commands_are_the_same_to_the_bit(kind, bundled, expected):
    assert_equal(bundled[kind], expected[kind])


def test_what_the_bundled_classes_save_loads_from_a_hub_without_the_package(
    bundled, expected, saved_again, use_without_the_package, loopback_hub, tmp_path
):
    places = {kind: f"somebody/{kind}" for kind in ("action-prior", "generative-policy")}
    for kind, place in places.items():
        shutil.copytree(saved_again[kind], loopback_hub.repository("models", place))
    results = use_without_the_package(places, **loopback_hub.settings(tmp_path / "cache"))
    for kind in places:
        assert_equal(results[kind], expected[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_bundled_classes_save_brings_the_same_code(kind, bundled, checkpoints, saved_again):
    ours, theirs = (
        {file.name: file.read_bytes() for file in folder.glob("*.py")}
        for folder in (checkpoints[kind], saved_again[kind])
    )
    assert theirs == ours
    for name in ("config.json", "processor_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (checkpoints[kind], saved_again[kind]))
        assert theirs["auto_map"] == ours["auto_map"], name


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_package_is_imported_its_classes_win(kind, checkpoints):
    place = checkpoints[kind]
    prior = kind == "action-prior"
    without_backbone = {} if prior else {"backbone": None}
    for trusted in (True, False, None):
        model = AutoModel.from_pretrained(place, trust_remote_code=trusted, **without_backbone)
        assert type(model) is (ActionPriorModel if prior else PriorVLAModel)
        config = AutoConfig.from_pretrained(place, trust_remote_code=trusted)
        assert type(config) is (ActionPriorConfig if prior else PriorVLAConfig)
        assert type(AutoProcessor.from_pretrained(place, trust_remote_code=trusted)) is PriorVLAProcessor


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_package_saves_names_no_code_that_is_not_beside_it(kind, checkpoints, tmp_path):
    model = AutoModel.from_pretrained(checkpoints[kind], **({} if kind == "action-prior" else {"backbone": None}))
    for part in (model, AutoProcessor.from_pretrained(checkpoints[kind])):
        part.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" not in json.loads((tmp_path / name).read_text()), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_needs_only_its_neighbours_and_what_comes_with_torch_transformers_and_diffusers(kind, checkpoints):
    files = {file.stem: file for file in checkpoints[kind].glob("*.py")}
    for file in files.values():
        compile(file.read_text(), file.name, "exec")
        assert set(get_imports(file)) <= PROVIDED | sys.stdlib_module_names, file.name
        tree = ast.parse(file.read_text())
        relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        assert {(node.level, node.module in files) for node in relative} <= {(1, True)}, file.name
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"__file__", "__path__"}, f"{file.name} reads files that are not beside a checkpoint"


def test_the_code_of_an_action_prior_has_no_policy_and_code_names_no_path(checkpoints):
    assert not (checkpoints["action-prior"] / "modeling_priorvla.py").exists()
    for folder in checkpoints.values():
        require_public(folder)


def test_code_goes_only_with_a_checkpoint_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="save the model there first"):
        bundle_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' is not one of priorvla_action_prior, priorvla"):
        bundle_code(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("from ..training.trainer import Trainer", "training/trainer.py is imported by a model"),
        ("from ..configuration.model import Config", "would be one file beside a checkpoint"),
        ("from . import layers", "import from a module"),
        ("from ..configuration import Config", "import from a module"),
        ("from priorvla.configuration.model import Config", "relatively"),
        ("import priorvla", "relatively"),
    ],
)
def test_an_import_that_flat_files_cannot_have_is_refused(line, complaint, tmp_path):
    for place, source in {"modeling_priorvla/model.py": line, "configuration/model.py": "Config = 1"}.items():
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text(source)
    with pytest.raises(ValueError, match=complaint):
        flat_modules(tmp_path, ["modeling_priorvla/model.py"])


def test_imports_are_rewritten_and_everything_else_is_left_as_it_stands(tmp_path):
    files = {
        "modeling_priorvla/model.py": '"""Of ..layers."""\n'
        "from ..configuration.shape import (\n    Shape,  # ..layers\n)\n"
        "def build():\n    from .layers import Layer\n    return Layer(Shape)\n",
        "modeling_priorvla/layers.py": "Layer = list\n",
        "configuration/shape.py": "Shape = tuple\n",
    }
    for place, source in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(source)
    flat = flat_modules(tmp_path, ["modeling_priorvla/model.py"])
    model = files["modeling_priorvla/model.py"].replace("from ..configuration.shape", "from .shape")
    assert flat == {"model.py": model, "layers.py": "Layer = list\n", "shape.py": "Shape = tuple\n"}


def test_a_checkpoint_of_before_settings_of_the_backbone_gives_the_same_chunk(
    checkpoints, backbones, expected, tmp_path
):
    """Its reference to a backbone does not say how images and words are shown to it, nor does its processor."""
    old = shutil.copytree(checkpoints["policy"], tmp_path / "old", ignore=shutil.ignore_patterns("*.py"))
    config, processor = (json.loads((old / name).read_text()) for name in ("config.json", "processor_config.json"))
    assert config["format_version"] == 1
    for fields, later in ((config, "auto_map"), (processor, "auto_map"), (processor, "text_template")):
        del fields[later]
    config["backbone"] = {key: config["backbone"][key] for key in ("source", "name", "revision", "sha256", "dtype")}
    (old / "config.json").write_text(json.dumps(config))
    (old / "processor_config.json").write_text(json.dumps(processor))
    namespace: dict = {}
    exec(USE, namespace)
    assert_equal(namespace["use"](str(old), backbones["policy"]), expected["policy"])


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
