"""The wheel among packages of other people that are called `agents` and `planners`: each leaves the others whole."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def made_wheel(name: str, package: str, folder: Path) -> Path:
    """A wheel of one package with one module, as somebody else has published it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{package}/__init__.py": f"OWNER = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: made\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ours, and one called like each of two packages of ours."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheels")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120, check=True
    )
    (ours,) = folder.glob("trainenv-*.whl")
    return [
        ours,
        made_wheel("openai_agents", "agents", folder),
        made_wheel("planners", "planners", folder),
    ]


def test_no_wheel_touches_another(wheels: list[Path], tmp_path: Path) -> None:
    """Installed together, and uninstalled one after the other; ours is not imported here, it needs torch."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = next(path for path in (tmp_path / "venv").glob("[bS]*/python*") if path.is_file())

    def pip(*words: str) -> None:
        command = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", *words]
        subprocess.run(command, capture_output=True, timeout=120, check=True)

    def files(package: str) -> set[str]:
        (site,) = {path.parent for path in (tmp_path / "venv").rglob("site-packages/pip")}
        return {str(path.relative_to(site)) for path in (site / package).rglob("*.py")}

    pip("install", "--no-index", "--no-deps", "--no-compile", *map(str, wheels))
    packages = ("trainenv", "agents", "planners")
    before = {package: files(package) for package in packages}
    assert "trainenv/planners/grid.py" in before["trainenv"]
    assert before["agents"] == {"agents/__init__.py"}
    assert before["planners"] == {"planners/__init__.py"}
    owners = "import agents, planners; assert (agents.OWNER, planners.OWNER) == ('openai_agents', 'planners')"
    subprocess.run([str(python), "-I", "-c", owners], cwd=tmp_path, timeout=60, check=True)
    left = dict(before)
    for name, package in (
        ("trainenv", "trainenv"),
        ("openai-agents", "agents"),
        ("planners", "planners"),
    ):
        pip("uninstall", "--yes", name)
        del left[package]
        assert {package: files(package) for package in left} == left
        assert not files(package)
        pip(
            "install",
            "--no-index",
            "--no-deps",
            "--no-compile",
            *(str(w) for w in wheels if name.replace("-", "_") in w.name),
        )
        left[package] = before[package]
