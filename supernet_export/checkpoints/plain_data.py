"""Define stand-ins for the plain data that trainers pickle beside a network's weights.

A pickle names what it wants to call. Both readers of PyTorch files give it these classes instead: they keep the numbers
of NumPy's scalars and arrays, forget everything else, and call nothing. This table is the whole safe list.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = re.compile(r"[<>=|]?[biuf]\d{1,2}")


class Forgotten:
    """Stands for a value that is not used here, such as the options of a training run."""

    def __new__(cls, *_: object) -> Any:
        """Ignore the value."""
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Ignore the state."""


class PlainArray:
    """Stands for a `numpy.ndarray`; `array` is None if it holds no numbers."""

    array: NDArray[Any] | None = None

    def __new__(cls, *_: object) -> Any:
        """Ignore the arguments; the state follows."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        flat = _numbers(dtype, data)
        if flat is not None:
            self.array = flat.reshape(shape, order="F" if is_fortran else "C")


class _Array:
    """Stands for the function that makes an empty array, which its state then fills."""

    def __new__(cls, kind: Any, *_: object) -> Any:
        return PLAIN_DATA["numpy", "ndarray"]() if kind is PLAIN_DATA["numpy", "ndarray"] else Forgotten()


class _Scalar:
    """Stands for the function that makes a NumPy scalar; gives a Python number, None if it is no number."""

    def __new__(cls, dtype: object = None, data: object = b"") -> Any:
        flat = _numbers(dtype, data)
        return flat[0].item() if flat is not None and len(flat) == 1 else None


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __new__(cls, *_: object) -> Any:
        return object.__new__(cls)

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code if isinstance(code, str) else ""

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.code = order + self.code.lstrip("<>=|")


class _Dictionary:
    """Stands for the kinds of dictionary."""

    def __new__(cls, *_: object) -> Any:
        return {}


def _numbers(dtype: object, data: object) -> NDArray[Any] | None:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or not _NUMBERS.fullmatch(dtype.code):
        return None
    return np.frombuffer(data, np.dtype(dtype.code))


def _under(stand_in: type, *names: str) -> dict[tuple[str, str], Any]:
    """Make a subclass for each full name, with this name, because torch compares names."""
    parts = [(module, name) for module, _, name in (full.rpartition(".") for full in names)]
    return {
        (module, name): type(name, (stand_in,), {"__module__": module, "__qualname__": name}) for module, name in parts
    }


#: Stand-ins by module and name. NumPy 2 moved its functions; Python 3.13 its paths.
PLAIN_DATA: dict[tuple[str, str], Any] = {
    **_under(_Scalar, "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    **_under(_Array, "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    **_under(PlainArray, "numpy.ndarray"),
    **_under(_Dtype, "numpy.dtype"),
    **_under(_Dictionary, "collections.defaultdict"),
    **_under(
        Forgotten,
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
        *(f"datetime.{kind}" for kind in ("datetime", "date", "timedelta")),
        *(
            f"builtins.{kind}"
            for kind in ("bool", "bytearray", "bytes", "dict", "float", "int", "list", "str", "tuple")
        ),
    ),
}
