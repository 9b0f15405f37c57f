"""The house: which file may import which. Read from the source, imports inside functions and type checks included."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT

ALLOWED = {  # room (a top-level file or folder): the rooms that it may import; imports inside a room are its own matter
    "main": {"configs", "continual_datasets", "engine", "errors", "metrics", "models", "outputs", "prompt", "records",
             "utils"},
    "engine": {"errors", "metrics", "utils"},
    "models": {"errors", "prompt", "utils"},
    "outputs": {"engine", "errors", "metrics", "plots", "utils"},
    "records": {"continual_datasets", "errors", "models", "utils"},
    "continual_datasets": {"errors", "utils"},
    "configs": {"errors"},
    "prompt": {"errors"},
    "metrics": {"errors"},
    "utils": {"errors"},
    "plots": {"errors"},
    "errors": set(),
    "demo": {"configs", "continual_datasets", "engine", "errors", "metrics", "models", "outputs", "prompt", "records",
             "utils"},  # its scripts assemble, as main does
}


def source_files() -> dict[str, Path]:
    """Module name -> file, of everything but the tests: `models`, `models.weights`, `main` …"""
    folders = [f for f in ROOT.iterdir() if f.is_dir() and not f.name.startswith(".") and f.name != "tests"
               and not (f / "pyvenv.cfg").exists()]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


SOURCES = source_files()
ROOMS = {name.partition(".")[0] for name in SOURCES}
TEST_MODULES = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests"}


def imported_names(module: str) -> set[str]:
    """Dotted names that a module imports, relative imports made absolute; `from a import b` gives a and a.b."""
    path = SOURCES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return names


def imported_modules(module: str) -> set[str]:
    """The project's modules among them. Taking a submodule from a package by name is an import of the submodule."""
    found = imported_names(module) & SOURCES.keys()
    packages = {name.rpartition(".")[0] for name in found}
    return {name for name in found if name not in packages or imports_itself(module, name)}


def imports_itself(module: str, package: str) -> bool:
    """Whether a module uses names that the package's own file defines, rather than only submodules of it."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and any(alias.name == package for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == package:
            return any(f"{package}.{alias.name}" not in SOURCES for alias in node.names)
    return False


def test_every_room_is_in_the_table():
    assert ALLOWED.keys() >= ROOMS, "a new room: say in ALLOWED what it may import"
    assert all(rooms <= ALLOWED.keys() for rooms in ALLOWED.values())


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_run_downward_only(room):
    for module in SOURCES:
        if module.partition(".")[0] != room:
            continue
        rooms = {name.partition(".")[0] for name in imported_names(module)}
        assert rooms & ROOMS - {room} <= ALLOWED[room], f"{module} imports what is not below it"
        assert not rooms & TEST_MODULES - ROOMS, f"{module} imports from the tests"


def test_nothing_imports_what_assembles():
    for module in SOURCES:
        assert not {name.partition(".")[0] for name in imported_modules(module)} & {"main", "demo"} or (
            module.startswith("demo.") and "main" not in imported_modules(module)), module


def test_there_are_no_import_cycles():
    graph = {module: imported_modules(module) for module in SOURCES}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path[path.index(module):], module])}"
        if module not in finished:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            finished.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_imports_by_name_happen_only_where_experiments_are_looked_up():
    """They would not be seen above."""
    for module, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | imported_names(module)
        assert module == "configs" or not words & {"__import__", "importlib", "exec", "eval", "runpy"}, module


def test_the_command_line_is_read_in_one_place():
    readers = {module for module in SOURCES if "argparse" in imported_names(module) and not module.startswith("demo.")}
    assert readers == {"configs.base"}


def test_the_graph_is_not_empty():
    assert {"configs.base", "configs.checks", "configs", "continual_datasets", "engine", "errors", "metrics", "models",
            "outputs", "records", "utils"} <= imported_modules("main")
    assert imported_modules("outputs") >= {"engine", "metrics", "plots", "utils", "errors"}
    assert "continual_datasets.scenario" in imported_modules("continual_datasets.batches")


@pytest.mark.parametrize("statement", [
    "import configs.base; configs.base.parse(['cifar100_l2p_jax', '--lr', '0.1'])",
    "import configs.base, configs.checks; configs.checks.check(configs.base.parse([]).options)",
    "import main; main.main(['--list'])",
    "import main; main.main(['--help'])",
    "import main; main.main(['--epohcs', '3'])",
])
def test_reading_a_command_line_loads_no_heavy_library(statement):
    """A mistyped option is answered at once, not after seconds of imports."""
    report = "; import sys; print(*sorted({'torch', 'torchvision', 'timm', 'numpy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", statement + report], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
