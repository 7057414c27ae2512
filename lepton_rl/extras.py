"""Packages that only some commands need: imported when they are called, and asked for in one line."""

import importlib
from types import ModuleType

from lepton_rl.errors import InputError


def extra(name: str, module: str) -> ModuleType:
    """Import a module that an extra of this package installs.

    Args:
        name: Of the extra, as in `pip install 'lepton_rl[NAME]'`.
        module: Dotted name.

    Raises:
        InputError: If it is not installed, or does not work here.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # a package of another torch raises the last two
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{module} cannot be imported ({reason}): expected the extra {name!r}; pip install 'lepton_rl[{name}]'"
        ) from error
