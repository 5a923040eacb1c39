"""Contracts of the packages as a whole: light to import, no pickle, everything public described."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainenv", "planners", "worldmodel", "agents")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "lightning",
    "matplotlib",
    "optuna",
    "pandas",
    "pyarrow",
    "ray",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "stable_baselines3",
    "tensorboard",
    "tokenizers",
    "transformers",
}
TORCHS_OWN_FILES = (
    "trainenv/checkpoints/interop.py"  # comes and goes in the format of others, which is a pickle
)
RUNS_PROGRAMS = (
    "trainenv/evaluation/sandbox/inside.py"  # the script that runs inside a sandbox, and only there
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def loaded(code: str) -> set[str]:
    """The modules that are loaded after `code` ran in a process of its own."""
    told = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    child = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    return set(json.loads(child.stdout.splitlines()[-1]))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public(module: ast.Module) -> Iterator[Definition]:
    """Public functions and classes at the top of a module, but for one-liners without arguments."""
    for node in module.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            terse = isinstance(node, ast.FunctionDef) and not node.args.args and len(node.body) == 1
            if not terse:
                yield node


# ── imports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_importing_the_package_loads_nothing_heavy_and_little_of_our_own() -> None:
    modules = loaded("import trainenv")
    assert not modules & HEAVY
    ours = {name for name in modules if name.split(".")[0] == "trainenv"}
    light = {"trainenv", "trainenv.tools", "trainenv.tools.lazy", "trainenv.tools.version"}
    assert {name for name in ours if not name.startswith("trainenv.types")} == light
    beside = modules - loaded("import torch, gymnasium") - ours
    assert len(beside) < 20, sorted(beside)


@pytest.mark.parametrize(
    "code",
    [
        "import agents, planners, worldmodel",
        "import trainenv; trainenv.TrainingRun",
        "import trainenv; trainenv.CheckpointStore",
        "import planners; planners.make('mcts')",
        "import trainenv.cli",
    ],
)
def test_what_is_heavy_is_loaded_when_it_is_used(code: str) -> None:
    assert not loaded(code) & HEAVY


def test_a_run_from_one_s_own_parts_needs_no_transformers() -> None:
    code = """
import torch, trainenv
model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))
config = trainenv.TrainingConfig(steps=3, threads=1)
run = trainenv.TrainingRun(model, torch.optim.SGD(model.parameters(), 0.1), lambda index: torch.full((2, 5), index), config)
run.advance(2)
run.fork().advance(1)
trainenv.clipping.make("spam")
"""
    assert not loaded(code) & HEAVY


# ── source ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_source_to_look_at() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_pickled(path: Path) -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & unsafe
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in unsafe
            assert node.module != "torch" or not {alias.name for alias in node.names} & {
                "load",
                "save",
            }
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = (node.value.id, node.attr)
            assert used != ("pd", "read_pickle")
            assert (
                used not in {("torch", "load"), ("torch", "save")}
                or named(path) == TORCHS_OWN_FILES
            )
        elif isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or (
                isinstance(node.value, ast.Constant) and node.value.value is False
            )
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"} or named(path) == RUNS_PROGRAMS
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in map(ast.unparse, node.keywords)  # which runs no code


def test_no_module_imports_the_script_that_runs_programs() -> None:
    name = Path(RUNS_PROGRAMS).stem
    assert (ROOT / RUNS_PROGRAMS).exists()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainenv.eval"):
                assert name not in (node.module or "").split(".")
                assert name not in {alias.name for alias in node.names}


@pytest.mark.parametrize("path", [path for path in FILES if path.stat().st_size], ids=named)
def test_every_module_and_everything_public_in_it_is_described(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module)
    undescribed = [node.name for node in public(module) if not ast.get_docstring(node)]
    assert undescribed == []


@pytest.mark.parametrize("path", sorted((ROOT / "trainenv" / "types").glob("*.py")), ids=named)
def test_the_nouns_import_nothing_of_ours_at_any_time(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert module.split(".")[0] not in PACKAGES or module.startswith("trainenv.types.")
        elif isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & set(PACKAGES)
