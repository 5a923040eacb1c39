"""Short names of packages in a checkout, without a second copy of their modules.

The packages `agents`, `planners` and `worldmodel` lie at the top of a checkout and are linked into
`trainenv`. There `import planners` would load all modules again under another name, with other
classes. `alias` makes the short name mean `trainenv.planners`. An installed `trainenv` has no short
names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def alias(package: str) -> None:
    """Let the short names of a package and of its modules mean those under `trainenv`."""
    sys.modules[package] = import_module(f"trainenv.{package}")
    sys.meta_path.insert(0, _ShortName(package))


class _ShortName(MetaPathFinder, Loader):
    """Import hook that finds the modules of one package by their short names."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find `planners.grid`, to be loaded as `trainenv.planners.grid`."""
        if fullname.startswith(self._prefix):
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its full name."""
        module = import_module(f"trainenv.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec of the module, which the import has replaced; its code has run."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
