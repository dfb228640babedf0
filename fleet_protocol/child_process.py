"""Start processes without modules from the current folder and without passwords.

`python -m` and `python -c` look for modules in the current folder first: a file `numpy.py` there would be executed. The
option `-P` prevents it from Python 3.11 on only, and `-I` also drops the user's own site-packages and `PYTHONPATH`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: Variables with passwords for this program: no child and no other program needs them.
PASSWORD_VARIABLES = ("FLEETNAS_PASSWORD", "PGPASSWORD")
#: Lists of folders in which an empty or relative entry stands for the current folder.
_FOLDER_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def python_command(module: str, function: str, *arguments: str) -> list[str]:
    """Return the command that calls `function` of `module`, without arguments, in a Python like this one.

    The function finds `arguments` in `sys.argv`, from 1 on.
    """
    # The empty entry is the current folder; later imports come from the installation.
    program = (
        f"import sys; sys.path[:] = [path for path in sys.path if path]; from {module} import {function}; {function}()"
    )
    return [sys.executable, "-c", program, *arguments]


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment for a child or another program, with `changes`.

    It has no password, and no list of folders in it contains the current folder.
    """
    kept = {name: value for name, value in os.environ.items() if name not in PASSWORD_VARIABLES}
    for name in _FOLDER_LISTS:
        if name in kept:
            folders = [folder for folder in kept[name].split(os.pathsep) if os.path.isabs(folder)]
            if folders:
                kept[name] = os.pathsep.join(folders)
            else:
                del kept[name]
    return {**kept, **(changes or {})}
