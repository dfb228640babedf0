"""What every benchmark prints: named figures, each with the bar that it must meet."""

from __future__ import annotations

import argparse
import json
import operator
from typing import Any

_COMPARISONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt, "==": operator.eq}


class Figures:
    """Collects figures; `report` prints them and tells whether all bars are met."""

    def __init__(self) -> None:
        self._figures: dict[str, dict[str, Any]] = {}

    def add(self, name: str, value: float, bar: str = "") -> None:
        """A figure; `bar` is a comparison such as `>= 10`, or empty where there is none to meet."""
        ok = True
        if bar:
            comparison, limit = bar.split()
            ok = bool(_COMPARISONS[comparison](value, float(limit)))
        self._figures[name] = {"value": value, "bar": bar, "ok": ok}

    def extend(self, others: Figures) -> None:
        """Append the figures of a part of the benchmark."""
        self._figures.update(others._figures)

    def report(self, *, as_json: bool) -> int:
        """Print everything; the exit status, 0 if all bars are met."""
        if as_json:
            print(json.dumps({"figures": self._figures}))
        else:
            width = max(len(name) for name in self._figures)
            for name, figure in self._figures.items():
                verdict = "" if not figure["bar"] else f"  bar {figure['bar']}: {'met' if figure['ok'] else 'MISSED'}"
                print(f"{name:<{width}}  {figure['value']:>12.5g}{verdict}")
        return 0 if all(figure["ok"] for figure in self._figures.values()) else 1


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with what every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made
