"""One copy of every class in a checkout, where `planners` is found by its own name too.

The packages `agents`, `planners` and `worldmodel` lie at the top of a checkout and are linked into
`trainenv`, where they are installed. `import planners` in a checkout then gives the modules of
`trainenv.planners`, not a second copy of them. An installed `trainenv` claims no name but its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def alias(package: str) -> None:
    """Make the short name of a package, and of every module in it, mean the one under `trainenv`."""
    sys.modules[package] = import_module(f"trainenv.{package}")
    sys.meta_path.insert(0, _ShortName(package))


class _ShortName(MetaPathFinder, Loader):
    """Finds the modules of one package by their short names."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find `planners.grid`, to be loaded as `trainenv.planners.grid`."""
        return ModuleSpec(fullname, self) if fullname.startswith(self._prefix) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its full name."""
        module = import_module(f"trainenv.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back, which the import has replaced; its code has run already."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
