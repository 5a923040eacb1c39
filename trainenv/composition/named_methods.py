"""Methods of a comparison by name: ours, those of installed packages, and functions of your own.

    methods = find_methods(["nothing", "zclip", "my_module:my_method"])

An installed package offers methods through an entry point:

    [project.entry-points."trainenv.methods"]        # in your pyproject.toml
    mine = "my_package:my_method"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trainenv.composition import methods
from trainenv.composition.methods import Method
from trainenv.tools.error_text import describe_error
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

GROUP = "trainenv.methods"


def installed() -> dict[str, EntryPoint]:
    """Return the methods of other packages by name, not yet loaded.

    Where names clash, the methods of this package win.
    """
    found = entry_points(group=GROUP)
    return {entry.name: entry for entry in found if entry.name not in methods.METHODS}


def find_methods(names: Iterable[str]) -> dict[str, Method]:
    """Return our methods, and those that are named in addition.

    Args:
        names: Names of our or installed methods, or functions as `module:function`. A module is
            looked for in the current folder too.

    Raises:
        UserError: There is no such method, or it cannot be loaded.
    """
    found = dict(methods.METHODS)
    others = installed()
    for name in names:
        if name in found:
            continue
        if ":" in name:
            found[name] = _own(name)
        elif name in others:
            found[name] = _load(name, others[name])
        else:
            known = [*methods.METHODS, *others]
            raise UserError(
                f"unknown method {name!r}{nearest(name, known)}; valid: {', '.join(known)}; or a"
                " function of your own as my_module:my_method"
            )
    return found


def _own(name: str) -> Method:
    """Import the function that `module:function` names."""
    place, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as for a script in it; worker processes take the path over
    try:
        module = import_module(place)
    except Exception as error:
        raise UserError(
            f"the module {place!r} of the method {name!r} can't be imported: "
            f"{describe_error(error)}; give a module in the current folder or an installed one,"
            " without .py"
        ) from None
    if not hasattr(module, attribute):
        close = nearest(attribute, [one for one in vars(module) if not one.startswith("_")])
        raise UserError(
            f"expected a function {attribute!r} in the module {place!r}, found none{close}; give"
            " module:function"
        )
    return _checked(name, getattr(module, attribute))


def _load(name: str, entry: EntryPoint) -> Method:
    try:
        method = entry.load()
    except Exception as error:
        raise UserError(
            f"the method {name!r} ({entry.value}) cannot be loaded: {describe_error(error)}; "
            "reinstall its package"
        ) from error
    return _checked(name, method)


def _checked(name: str, method: Any) -> Method:
    if isinstance(method, type) or not callable(method):
        raise UserError(
            f"the method {name!r} must be a function (config, folder, watch, stop), found "
            f"{method!r:.80}; see examples/own_comparison.py"
        )
    found: Method = method
    return found
