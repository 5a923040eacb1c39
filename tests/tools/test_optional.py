"""Optional packages: one table of what installs them, and one sentence where one is missing."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trainenv.tools.optional import EXTRAS, is_installed, require
from trainenv.types import UserError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "mlflow": "mlflow-skinny",
    "sklearn": "scikit-learn",
}  # where the import name is another
OWN = ("trainenv", "planners", "worldmodel", "agents")


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_installs_the_package(package: str) -> None:
    listed = PROJECT["optional-dependencies"][EXTRAS[package]]
    names = {canonicalize_name(Requirement(written).name) for written in listed}
    assert canonicalize_name(DISTRIBUTIONS.get(package, package)) in names


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert not is_installed("optuna")
    with pytest.raises(UserError) as refused:
        require("optuna", "tuning")
    assert str(refused.value) == (
        "tuning needs the package optuna, found none; pip install 'trainenv[bayes]'"
    )


def test_asking_for_a_package_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    require("sklearn", "this")
    assert "sklearn" not in sys.modules


def test_nothing_else_guards_an_import() -> None:
    """A second spelling would say something else in its sentence."""
    guards = []
    for path in [path for package in OWN for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and "pip install 'trainenv[" in str(node.value):
                guards.append(path.relative_to(ROOT).as_posix())
    assert set(guards) == {"trainenv/tools/optional.py", "trainenv/cli/doctor.py"}
