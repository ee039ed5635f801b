"""What is shipped: the wheel's and the source archive's contents, the declared dependencies, the pinned versions."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = ("tests", "benchmarks", "examples", "docs", "scripts", "lerobot_policy_priorvla")
NOT_OURS_TO_DECLARE = {"lerobot"}  # its older pins would hold back everything else: who has it installs us beside it
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the tree under another name, so that builds neither use nor leave anything in the repository."""
    copy = tmp_path_factory.mktemp("copy") / "another-name"
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "outputs")
    shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel that is built from the source archive, as for a release."""
    build(source)
    return next((source / "dist").glob("*.whl"))


def build(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def shipped_files(tree: Path) -> set[str]:
    """What the wheel must hold: the root's modules and `py.typed`, and every file of every folder that is shipped."""
    files = {file for file in tree.iterdir() if file.suffix == ".py" or file.name == "py.typed"}
    for folder in tree.iterdir():
        if folder.is_dir() and folder.name not in (*NOT_SHIPPED, "dist", "build") and folder.suffix != ".egg-info":
            files |= {file for file in folder.rglob("*") if file.is_file()}
    return {f"priorvla/{file.relative_to(tree).as_posix()}" for file in files}


def test_the_wheel_built_from_the_source_archive_holds_every_file_of_the_package_and_no_other(
    source: Path, wheel: Path
) -> None:
    assert set(contents(wheel)) == shipped_files(source)


def test_the_wheel_built_from_the_tree_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    build(source, "--wheel", "--outdir", str(tmp_path))
    assert contents(next(tmp_path.glob("*.whl"))) == contents(wheel)


def test_the_wheel_carries_the_licence_and_works_from_another_place(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert "Apache License" in next(tmp_path.glob("*.dist-info/licenses/LICENSE")).read_text(encoding="utf-8")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import priorvla
from importlib.metadata import distribution
assert priorvla.__file__.startswith({str(tmp_path)!r}), priorvla.__file__
installed = distribution("priorvla")
assert installed.version == priorvla.__version__
(command,) = [entry for entry in installed.entry_points if entry.group == "console_scripts"]
assert command.name == "priorvla" and callable(command.load())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_imported_package_is_a_declared_dependency_and_every_dependency_is_imported(source: Path) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    owners = packages_distributions()
    undeclared, imported = [], set()
    for file in sorted(name.removeprefix("priorvla/") for name in shipped_files(source) if name.endswith(".py")):
        for node in ast.walk(ast.parse((source / file).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                owned_by = {canonicalize_name(owner) for owner in owners.get(top, [top])}
                imported |= owned_by
                if not (declared | NOT_OURS_TO_DECLARE) & owned_by:
                    undeclared.append(f"{file}:{node.lineno} imports {top}")
    assert not undeclared
    needed = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert needed - imported == {"accelerate"}  # transformers' Trainer imports it


def test_the_pinned_versions_cover_the_declared_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.fullmatch(r"([^=]+)==(.+)", line).groups() for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in requirements():
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{requirement} does not admit the tested version {pinned}"
    assert "torchvision" not in pins
    assert "+" not in pins["torch"], "a local version can only be installed from one index"


def test_the_ranges_admit_the_oldest_versions_that_were_run() -> None:
    ranges = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements()}
    oldest = {"torch": "2.11.0", "transformers": "5.17.0", "huggingface-hub": "1.33.0", "datasets": "4.8.5"}
    for name, version in {**oldest, "av": "15.1.0", "numpy": "2.2.6"}.items():
        assert ranges[name].contains(version), f"{name}{ranges[name]} refuses {version}"


def requirements() -> list[Requirement]:
    """What users and developers install: the dependencies and every extra's."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for texts in (PROJECT["dependencies"], *extras) for text in texts]
