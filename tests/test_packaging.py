"""The package: imports that run one way, versions that are pinned, and a wheel that brings its configurations."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import trainenv

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def lines_of(name: str) -> list[str]:
    """The lines of a file of constraints that pin something."""
    written = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [pin for line in written if (pin := line.partition("#")[0].strip())]


def pins(lines: list[str]) -> dict[str, str]:
    """The version of each distribution that is pinned."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in requirements}


CONSTRAINTS, LOWEST = lines_of("constraints.txt"), lines_of("constraints-lowest.txt")
PINNED, PINNED_LOWEST = pins(CONSTRAINTS), pins(LOWEST)
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
REQUIRED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(
        written
        for extra in EXTRAS.values()
        for written in extra
        if not written.startswith("trainenv[")
    ),
]
OF_USERS = [
    *PROJECT["project"]["dependencies"],
    *(written for extra in ("bayes", "hub", "sb3", "tensorboard") for written in EXTRAS[extra]),
]
WHEEL: dict[str, Any] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]

LINKED = ("agents", "planners", "worldmodel")  # at the top of a checkout, linked into trainenv


# ── imports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_imports_run_one_way() -> None:
    """In a process of its own: the checker changes logging and the path."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = len(PROJECT["tool"]["importlinter"]["contracts"])
    assert f"Contracts: {contracts} kept, 0 broken" in done.stdout


def test_every_package_is_checked() -> None:
    assert (
        [PROJECT["tool"]["importlinter"]["root_package"]]
        == WHEEL["packages"]
        == PROJECT["tool"]["mypy"]["packages"]
    )


@pytest.mark.parametrize("name", LINKED)
def test_a_package_at_the_top_is_part_of_trainenv(name: str) -> None:
    """There is one copy of every class, by whichever name it is imported first."""
    code = f"import {name}, trainenv.{name} as full; from trainenv import {name} as one; assert {name} is full is one"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=True)
    assert (ROOT / "trainenv" / name).is_symlink()
    assert (ROOT / "trainenv" / name).resolve() == ROOT / name


def test_modules_at_the_top_are_those_of_trainenv() -> None:
    code = "import planners.grid as short; import trainenv.planners.grid as full; assert short is full; print(full.__spec__.name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "trainenv.planners.grid"


# ── versions ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("written", REQUIRED)
def test_every_dependency_is_pinned_within_its_bounds(written: str) -> None:
    requirement = Requirement(written)
    pinned = PINNED.get(canonicalize_name(requirement.name))
    assert pinned is not None
    assert requirement.specifier.contains(pinned)


@pytest.mark.parametrize("written", OF_USERS)
def test_every_floor_is_the_version_that_is_run(written: str) -> None:
    """A floor that nothing runs with is a guess."""
    requirement = Requirement(written)
    (floor,) = requirement.specifier
    assert floor.operator == ">="
    assert Version(PINNED_LOWEST[canonicalize_name(requirement.name)]) == Version(floor.version)


@pytest.mark.parametrize("lines", [CONSTRAINTS, LOWEST], ids=["newest", "lowest"])
def test_constraints_pin_one_public_version_each(lines: list[str]) -> None:
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    assert len(pins(lines)) == len(lines)


def test_torch_is_the_version_that_was_measured() -> None:
    assert PINNED["torch"] == "2.13.0"


def test_what_is_installed_by_make_is_pinned() -> None:
    for names in re.findall(r"^\t\$\(PIP\) ((?:[a-z]\S+ ?)+)$", MAKEFILE, re.MULTILINE):
        for name in names.split():
            assert canonicalize_name(name) in PINNED
    assert "--constraint constraints.txt" in MAKEFILE


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == trainenv.__version__
    assert Version(trainenv.__version__)


# ── what is shipped ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_is_there() -> None:
    module, _, function = PROJECT["project"]["scripts"]["trainenv"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_wheel_brings_the_configurations() -> None:
    assert WHEEL["force-include"]["configs"] == "trainenv/configs"
    for package in ("trainenv", *LINKED):
        assert (ROOT / package / "__init__.py").is_file()


def test_the_source_distribution_has_what_its_tests_need() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {
        "/configs",
        "/tests",
        "/Makefile",
        "/constraints.txt",
        *(f"/{name}" for name in ("trainenv", *LINKED)),
    } <= set(included)
    for name in included:
        assert (ROOT / name.removeprefix("/")).exists()


def test_a_wheel_holds_every_module_and_configuration(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("trainenv-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = ROOT / "configs"
    for path in configs.rglob("*"):
        assert path.is_dir() or f"trainenv/configs/{path.relative_to(configs)}" in names
    for package in ("trainenv", *LINKED):
        for module in (ROOT / package).rglob("*.py"):
            placed = module.relative_to(ROOT).as_posix()
            assert (f"trainenv/{placed}" if package in LINKED else placed) in names
    assert {name.split("/")[0] for name in names} == {
        "trainenv",
        f"trainenv-{trainenv.__version__}.dist-info",
    }
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]
    assert "trainenv/py.typed" in names


# ── make and CI ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#!")
    assert any(re.fullmatch(r"(\w+=\d+ )*(exec )?make test", line.strip()) for line in lines)
    assert any(re.match(r"(exec )?make test-lowest\b", line.strip()) for line in lines)


def test_make_knows_its_targets() -> None:
    for target in ("demo", "test", "test-lowest", "check"):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    assert "trainenv demo" in MAKEFILE
    for tool in ("pytest", "ruff check", "ruff format --check", "mypy", "lint-imports"):
        assert tool in MAKEFILE


def test_the_tests_of_the_lowest_versions_are_there() -> None:
    (listed,) = re.findall(
        r"^LOWEST_TESTS := \$\(addprefix tests/,(.*?)\)$", MAKEFILE, re.MULTILINE | re.DOTALL
    )
    names = listed.replace("\\\n", " ").split()
    assert len(names) > 10
    assert [name for name in names if not (ROOT / "tests" / name).is_file()] == []


def test_warnings_are_errors() -> None:
    assert PROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"][0] == "error"


def test_what_tests_share_has_a_name_of_its_own() -> None:
    """Test folders lie on one path, so of two modules of one name the first that a worker imports hides the other."""
    names = Counter(
        path.stem
        for path in Path(__file__).parent.rglob("*.py")
        if path.name not in ("conftest.py", "__init__.py")
    )
    assert [name for name, count in names.items() if count > 1] == []
