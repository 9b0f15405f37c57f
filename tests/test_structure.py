"""The house: which file may import which. Read from the source, imports inside functions and type checks included."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT

_ASSEMBLERS = {"configs", "continual_datasets", "distributed", "engine", "errors", "evaluation", "metrics", "models",
               "output_lock", "outputs", "paths", "plan", "progress", "prompt", "prompt_methods", "records",
               "resuming", "run_folder", "saved_files", "utils"}
ALLOWED = {  # room (a top-level file or folder): the rooms that it may import; imports inside a room are its own matter
    "main": _ASSEMBLERS | {"build", "interruption", "speed_test", "training"},
    "build": {"continual_datasets", "distributed", "errors", "models", "training", "utils"},
    "diagnosis": {"prompt", "utils"},
    "demo": _ASSEMBLERS | {"build"},  # its script assembles, as main does
    "benchmarks": _ASSEMBLERS | {"build", "speed_test", "training"},
    "results": {"records"},
    "run_with_submitit": {"configs", "errors", "main", "paths", "resuming"},
    "resuming": {"build", "configs", "continual_datasets", "distributed", "errors", "run_folder", "saved_files",
                 "utils"},
    "loading": {"build", "configs", "continual_datasets", "distributed", "errors", "kinds", "models", "run_folder",
                "saved_files", "utils"},
    "predict": {"configs", "continual_datasets", "errors", "loading", "records", "utils"},
    "import_run": {"build", "configs", "continual_datasets", "distributed", "errors", "kept_files", "models",
                   "output_lock", "paths", "records", "run_folder", "utils"},
    "engine": {"errors", "evaluation", "interruption", "progress", "training", "utils"},
    "evaluation": {"continual_datasets", "diagnosis", "errors", "interruption", "metrics", "models", "progress",
                   "training", "utils"},
    "training": {"continual_datasets", "errors", "utils"},
    "plan": {"engine", "errors", "evaluation", "progress"},
    "progress": {"errors"},
    "interruption": {"errors"},
    "speed_test": {"engine", "errors", "plan", "progress", "training", "utils"},
    "reproduce": {"configs", "errors", "main", "paths", "plots", "progress", "reporting", "reproducing"},
    "reproducing": {"configs", "continual_datasets", "errors", "progress", "reporting", "resuming"},
    "models": {"errors", "paths", "prompt", "prompt_methods", "utils"},
    "outputs": {"diagnosis", "errors", "evaluation", "kept_files", "metrics", "paths", "plots", "progress",
                "tensorboard_file", "utils"},
    "tensorboard_file": {"errors"},
    "kept_files": {"errors", "paths", "utils"},
    "run_folder": {"configs", "errors", "kinds", "paths", "saved_files", "utils"},
    "output_lock": {"errors", "paths"},
    "saved_files": {"configs", "errors", "kinds", "metrics", "paths", "utils"},
    "kinds": {"errors"},
    "report": {"configs", "errors", "reporting"},
    "reporting": {"configs", "errors", "metrics", "plots"},
    "records": {"continual_datasets", "errors", "models", "utils"},
    "continual_datasets": {"errors", "output_lock", "paths", "utils"},
    "configs": {"errors", "paths"},
    "prompt": {"errors"},
    "prompt_methods": {"errors", "prompt"},
    "metrics": {"errors"},
    "utils": {"distributed", "errors", "paths"},
    "distributed": {"errors"},
    "plots": {"errors"},
    "paths": {"errors"},
    "errors": set(),
}


def source_files() -> dict[str, Path]:
    """Module name -> file, of everything but the tests: `models`, `models.weights`, `main` …"""
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")
               and folder.name != "tests" and not (folder / "pyvenv.cfg").exists()]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


SOURCES = source_files()
ROOMS = {name.partition(".")[0] for name in SOURCES}
TEST_MODULES = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tests"}


@functools.cache
def syntax(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@functools.cache
def imported_names(module: str) -> frozenset[str]:
    """Dotted names that a module imports, relative imports made absolute; `from a import b` gives a and a.b."""
    is_package = SOURCES[module].name == "__init__.py"
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = set()
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return frozenset(names)


def test_every_room_is_in_the_table_and_nothing_may_import_what_assembles():
    assert ALLOWED.keys() >= ROOMS, "a new room: say in ALLOWED what it may import"
    for room in ALLOWED.keys() - {"run_with_submitit", "reproduce"}:  # these run main, as a shell does
        assert ALLOWED[room] <= ALLOWED.keys() - {"main", "run_with_submitit", "predict", "import_run", "demo",
                                                  "benchmarks", "results"}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_run_downward_only(room):
    for module in SOURCES:
        if module.partition(".")[0] == room:
            imported = {name.partition(".")[0] for name in imported_names(module)} - {room}
            assert imported & ROOMS <= ALLOWED[room], f"{module} imports what is not below it"
            assert not imported & TEST_MODULES, f"{module} imports from the tests"


def test_there_are_no_import_cycles():
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path[path.index(module):], module])}"
        if module not in finished:
            for name in sorted(imported_names(module) & SOURCES.keys()):
                visit(name, [*path, module])
            finished.add(module)

    for module in sorted(SOURCES):
        visit(module, [])


def test_the_graph_sees_what_is_there():
    """Imports inside functions, of packages, of submodules: a graph that missed them would pass every test above."""
    assert imported_names("main") >= {"build", "configs", "configs.base", "configs.checks", "engine",
                                      "errors", "interruption", "models", "outputs", "records", "utils"}
    assert imported_names("outputs") >= {"evaluation", "metrics", "plots", "utils"}
    assert "continual_datasets.images" in imported_names("continual_datasets.batches")


def test_modules_are_imported_by_name_only_where_experiments_and_methods_are_looked_up():
    for module in SOURCES:
        words = {node.id for node in ast.walk(syntax(module)) if isinstance(node, ast.Name)} | imported_names(module)
        importers = {"__import__", "importlib", "runpy", "exec", "eval"}
        assert module in ("configs", "prompt_methods") or not words & importers, module


def test_the_command_line_is_read_in_one_place():
    readers = {module for module in SOURCES if "argparse" in imported_names(module)}
    elsewhere = {module for module in readers if not module.startswith(("demo.", "benchmarks."))}
    assert elsewhere == {"configs.command", "configs.option"}


@pytest.mark.parametrize("statement", [
    "import configs.command; configs.command.parse(['cifar100_l2p_jax', '--lr', '0.1'])",
    "import configs.checks, configs.command; configs.checks.check(configs.command.parse([]).options)",
    "import main; main.main(['--list'])",
    "import main; main.main(['--help'])",
    "import main; main.main(['--epohcs', '3'])",
    "import predict; predict.main(['--help'])",
    "import predict; predict.main(['run', 'image.jpg', '--tsak', '3'])",
    "import import_run; import_run.main(['--help'])",
    "import import_run; import_run.main(['theirs', 'ours', '--lrr', '0.1'])",
])
def test_reading_a_command_line_loads_no_heavy_library(statement):
    """A mistyped option is answered at once, not after seconds of imports."""
    heavy = {"torch", "torchvision", "timm", "numpy", "matplotlib"}
    done = subprocess.run([sys.executable, "-c", f"{statement}; import sys; print(*{heavy} & set(sys.modules))"],
                          cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "", f"loaded: {done.stdout.splitlines()[-1]}"
