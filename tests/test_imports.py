"""Imports point one way, modules stay small, and `import workbench` stays light."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import workbench

PACKAGE = Path(workbench.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Text flows one way: a module imports only what stands before it here; the longest name that fits counts. The
# embedded world stands early, since the judge reads with it; its training, pilot and card use everything.
ORDER: tuple[str, ...] = tuple(
    "errors rates endpoint cluster values reading prompts labelled checkpoints models embedded activations probes "
    "audit vectors exchange geometry gates neurons steering generate evaluation embedded.training embedded.pilot "
    "embedded.card figures report panels app drafts writing notebooks doctor app_commands data_commands cache_commands "
    "evaluate_commands cli __main__".split()
)
# The exceptions, inside functions only: the loaders hand a request for "embedded" to the embedded world, a fit
# knows its picture, an evaluation its report, and the teacher of an adapter speaks.
LAZY_EXCEPTIONS = {
    ("prompts", "embedded"), ("models", "embedded"), ("geometry", "figures"), ("evaluation", "report"),
    ("steering", "generate"),
}  # fmt: skip


class Import(NamedTuple):
    module: str
    target: str
    lazy: bool  # inside a function
    line: int


def imports(module: str, source: str, package: bool) -> list[Import]:
    """Imports of the workbench's own modules in `source`, those for type checkers left out."""
    found = []

    def add(target: str, node: ast.stmt, lazy: bool) -> None:
        if target == "workbench" or target.startswith("workbench."):
            found.append(Import(module, target, lazy, node.lineno))

    def walk(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for name in child.names:
                    add(name.name, child, lazy)
            elif isinstance(child, ast.ImportFrom):
                base = module.split(".")
                base = base[: len(base) - child.level + package] if child.level else []
                origin = ".".join([*base, *(child.module or "").split(".")]).strip(".")
                for name in child.names:
                    full = f"{origin}.{name.name}"
                    through_the_door = origin == "workbench" and name.name in workbench._HOME
                    add(full if full in MODULES and not through_the_door else origin, child, lazy)
            walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    walk(ast.parse(source), False)
    return found


def place(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    name = module.removeprefix("workbench.")
    fitting = [entry for entry in ORDER if name == entry or name.startswith(entry + ".")]
    if not fitting:
        pytest.fail(f"{module} has no place in the order of imports: give it one in tests/test_imports.py")
    return max(fitting, key=len)


def against_the_order(found: list[Import]) -> list[str]:
    wrong = []
    for module, target, lazy, line in found:
        if module == "workbench":
            wrong += (
                [] if lazy else [f"the door imports {target} at once (line {line}): load it on first use"]
            )
            continue
        if target == "workbench":
            wrong.append(f"{module}:{line} imports the door: import from the module itself")
            continue
        here, there = place(module), place(target)
        if here == there or ORDER.index(there) < ORDER.index(here):
            continue
        if lazy and (here, there.split(".")[0]) in LAZY_EXCEPTIONS:
            continue
        wrong.append(f"{module}:{line} imports {target}, which stands after it")
    return wrong


ALL = [
    found
    for module, path in MODULES.items()
    for found in imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
]


def test_imports_point_one_way():
    assert against_the_order(ALL) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("workbench.values", "from .gates import ProbeGate", "workbench.gates, which stands after it"),
        (
            "workbench.values",
            "def f():\n    from .gates import ProbeGate",
            "workbench.gates, which stands after it",
        ),
        ("workbench.values", "import workbench.cli", "workbench.cli, which stands after it"),
        (
            "workbench.steering.conva",
            "from ..panels import Nothing",
            "workbench.panels, which stands after it",
        ),
        ("workbench.models", "from . import cli", "workbench.cli, which stands after it"),
        ("workbench.models", "def f():\n    from .embedded import training", None),
        ("workbench.models", "from .embedded import training", "which stands after it"),
        ("workbench.gates", "from workbench import generate", "imports the door"),
        ("workbench", "from .errors import WorkbenchError", "the door imports workbench.errors at once"),
    ],
)
def test_the_check_sees(module, source, complaint, monkeypatch):
    for name in ("gates", "cli", "panels", "embedded.training"):
        monkeypatch.setitem(MODULES, f"workbench.{name}", PACKAGE)
    wrong = against_the_order(imports(module, source, module == "workbench"))
    assert wrong == [] if complaint is None else len(wrong) == 1 and complaint in wrong[0]


def test_no_circle_of_modules():
    graph = {
        module: {found.target for found in ALL if found.module == module and not found.lazy}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circular import: {' -> '.join([*path, module])}"
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_small(module):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 450, f"{module} has {lines} lines: split it where its subject splits"


def test_import_is_light():
    code = (
        "import sys, workbench; dir(workbench); "
        "print([name for name in ('torch', 'transformers', 'pandas', 'plotly') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", dir(workbench))
def test_every_public_name_resolves(name):
    assert getattr(workbench, name) is not None


def test_type_checkers_see_the_same_door():
    tree = ast.parse(MODULES["workbench"].read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {name: (home, name) for name, home in workbench._HOME.items()}
    assert seen == loaded | {name: (None, name) for name in workbench._MODULES}


def test_an_unknown_name_is_an_attribute_error_that_lists_the_door():
    with pytest.raises(AttributeError, match="no attribute 'load_modle'.*load_model"):
        workbench.load_modle  # type: ignore[attr-defined]  # noqa: B018


def test_the_function_generate_outlives_the_import_of_its_module():
    code = "import workbench.generate; import workbench as wb; print(type(wb.generate).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "function", result.stderr
