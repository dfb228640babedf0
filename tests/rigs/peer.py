"""The `ofa` package (the reference implementation of once-for-all networks), as a peer to compare with."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

_STUBBED = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
)


class _Stub(ModuleType):
    """A module whose every attribute is an empty class: enough to subclass and annotate with."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _torchvision_stubbed() -> Iterator[None]:
    missing = [name for name in _STUBBED if name not in sys.modules]
    for name in missing:
        stub = _Stub(name)
        stub.__path__ = []
        stub.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = stub
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, stub)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def import_peer(module: str = "ofa.imagenet_classification.elastic_nn.networks") -> types.ModuleType:
    """Import a module of `ofa`, or skip the test where `ofa` is not installed.

    `ofa` imports torchvision for its ImageNet loaders, which no test needs: while it is imported, and only then,
    an absent torchvision is replaced by an empty stand-in.
    """
    pytest.importorskip("torch")
    try:
        importlib.import_module("torchvision")
    except ImportError:
        with _torchvision_stubbed():
            return _import(module)
    return _import(module)


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "ofa":
            raise
        pytest.skip("the peer is not installed: pip install ofa")
