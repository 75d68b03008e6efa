"""The project's files agree with each other and hold nothing that belongs to one machine."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"pytorch": "torch"}
IMPORT_NAMES = {"sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml", "lm_eval": "lm-eval"}


def requirements(lines: list[str], names: dict[str, str] | None = None) -> dict[str, SpecifierSet]:
    """Canonical package name -> its bounds."""
    parsed = [Requirement(line) for line in lines]
    return {(names or {}).get(r.name, canonicalize_name(r.name)): r.specifier for r in parsed}


def constraints() -> dict[str, SpecifierSet]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return requirements([line for line in lines if line and not line.startswith("#")])


def files() -> list[Path]:
    """Every file that is, or would be, in the repository."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def notebooks() -> list[Path]:
    return [
        path for path in sorted(ROOT.glob("notebooks/**/*.ipynb")) if ".ipynb_checkpoints" not in path.parts
    ]


def test_conda_environment_has_the_names_and_bounds_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert "-e .[dev,app]" in pip
    found = requirements(conda, CONDA_NAMES) | requirements(
        [line for line in pip if not line.startswith("-")]
    )
    assert found.pop("pip") == SpecifierSet()
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found == requirements(PROJECT["dependencies"] + EXTRAS["app"])


def test_constraints_lie_inside_the_bounds_and_pin_what_is_installed():
    pinned = constraints()
    assert str(pinned["torch"]) == "==2.13.0"
    for name, bounds in requirements(PROJECT["dependencies"] + EXTRAS["app"] + EXTRAS["dev"]).items():
        assert name in pinned, f"{name} is installed by `make setup`, but constraints.txt does not pin it"
        version = str(pinned[name]).removeprefix("==")
        assert bounds.contains(version), (
            f"constraints.txt pins {name}=={version}, pyproject.toml wants {bounds}"
        )


def test_bounds_that_the_hooks_and_figures_rest_on():
    core = requirements(PROJECT["dependencies"])
    for name, inside, outside in [
        ("torch", "2.6", "2.5"),
        ("transformer-lens", "4.3", "5.0"),
        ("plotly", "7.1", "8.0"),
        ("ipywidgets", "8.1", "9.0"),
        ("zarr", "3.1", "2.18"),
    ]:
        assert core[name].contains(inside) and not core[name].contains(outside), f"{name}{core[name]}"
    python = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.10", "3.11", "3.12", "3.13", "3.14") if v in python] == ["3.11", "3.12", "3.13"]
    assert {"cluster", "eval", "app", "dev"} <= set(EXTRAS)


def test_every_library_the_package_imports_is_declared():
    declared = {name for lines in [PROJECT["dependencies"], *EXTRAS.values()] for name in requirements(lines)}
    core = set(requirements(PROJECT["dependencies"]))
    served = core | set(requirements(EXTRAS["app"]))  # `workbench app` looks for voila before it imports these
    homes = {ROOT / "workbench" / "app" / "server.py": served, ROOT / "workbench" / "app" / "visits.py": served}
    missing = []
    for path in sorted((ROOT / "workbench").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"workbench"}:
                package = IMPORT_NAMES.get(name, canonicalize_name(name))
                if package not in (homes.get(path, core) if node in tree.body else declared):
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert missing == []


def test_pre_commit_runs_the_pinned_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {"nbstripout", "ruff"} <= {hook["id"] for hook in hooks}
    pinned = constraints()
    for hook in hooks:
        for name, version in requirements(hook["additional_dependencies"]).items():
            assert pinned[name] == version, (
                f"pre-commit runs {name}{version}, constraints.txt pins {pinned[name]}"
            )


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_notebooks_carry_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"], f"{path.name} holds widget state: run nbstripout on it"
    for number, cell in enumerate(notebook["cells"]):
        kept = cell.get("outputs") or cell.get("execution_count")
        assert not kept, f"cell {number} of {path.name} holds outputs or a count: run nbstripout on it"


def test_no_file_names_one_machine_or_a_registry():
    # written so that the patterns do not find themselves
    machine = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work|mnt|tmp)/\w|[A-Z]:\\{1,2}Users\b")
    registry = re.compile(
        r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|/simple/\b|index-url\s*=?\s*\w"
    )
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := machine.search(line) or registry.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


def test_no_file_is_too_large_for_a_repository():
    large = [
        f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.0f} MB"
        for path in files()
        if path.stat().st_size > 25e6
    ]
    assert large == []


def test_no_pickle_is_shipped():
    assert [
        path for path in files() if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib"}
    ] == []


def test_licence_is_mit():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License") and "without restriction" in text
    assert PROJECT["license"] == "MIT"


@pytest.mark.parametrize("target", ["setup", "lab", "test", "tour", "app", "bench", "clean"])
def test_make_offers(target):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony and target in phony[1].split()
    assert re.search(rf"^(?:[\w ]+ )?{target}\b[^:=\n]*:(?!=)", text, re.MULTILINE), f"no rule for {target}"
