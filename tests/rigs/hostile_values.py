"""Every field of every message with the values that an honest program never sends there.

A case is a genuine message of which one field is replaced. Fields are found by the messages' own JSON schema, so a new
field is among them without a change here.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fleetnas.fleet_protocol.codec import decode
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import Message

Path = tuple[str | int, ...]

#: Numbers as they are written in JSON: most are none that any standard library would write.
_NUMBERS = (
    *("0", "-0.0", "1", "-1", "0.5", "1e-9", "5e-324", "2.2250738585072014e-308", "1e-300", "1e9", "1e15", "1e200"),
    *("1e308", "-1e308", "1.7976931348623157e308", "1e999", "-1e999", "NaN", "Infinity", "-Infinity"),
    *("2147483648", "9007199254740993", "9223372036854775808", "1" + "0" * 400, '"Infinity"', '"NaN"', '"12"'),
)
_TEXTS = (
    *(
        "",
        " ",
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "＝1",
        "'",
        "'=1",
        '"',
        ",",
        ";",
        "\x00",
        "\x1b[2J",
    ),
    *(
        "\u202e",
        "\U0001f4a9",
        "\u2028",
        "..",
        "../../etc/passwd",
        "/",
        "a/b",
        "con",
        "results.json",
        "report.html",
        "nan",
    ),
    *("<script>alert(1)</script>", "{{7*7}}", "%s%n", "$(id)", "a" * 33, "a" * 64, "a" * 65, "a" * 129, "a" * 501),
    *("a" * 5000, "=" * 60_000),
)
_OTHERS = ("null", "true", "[]", "{}", '"x"', "7", "[[]]", '{"a":{}}', "[" + "1," * 5000 + "1]")


@dataclass(frozen=True)
class Place:
    """A field of a message, somewhere in it."""

    path: Path
    schema: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A message with one field replaced."""

    kind: str
    path: Path
    value: str
    payload: bytes
    accepted: bool
    """Whether the contract has no objection."""


def places(kind: type[BaseModel]) -> list[Place]:
    """Every field of a message and of the values in it, by its JSON schema."""
    schema = kind.model_json_schema()
    return list(_places(schema, schema.get("$defs", {}), ()))


def _places(schema: dict[str, Any], definitions: dict[str, Any], path: Path) -> Iterator[Place]:
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **{k: v for k, v in schema.items() if k != "$ref"}}
    branches = [branch for branch in schema.get("anyOf", []) if branch.get("type") != "null"]
    if branches:
        for branch in branches:
            yield from _places(branch, definitions, path)
        return
    if path:
        yield Place(path, schema)
    for name, inner in schema.get("properties", {}).items():
        yield from _places(inner, definitions, (*path, name))
    if schema.get("type") == "array" and "items" in schema:
        yield from _places(schema["items"], definitions, (*path, 0))


def values(place: Place) -> Iterator[str]:
    """What is put there, as JSON: the bounds of the field, beyond them, and what is always odd."""
    kind = place.schema.get("type")
    if kind in ("number", "integer"):
        for name, step in (("minimum", -1), ("exclusiveMinimum", -1), ("maximum", 1), ("exclusiveMaximum", 1)):
            if name in place.schema:
                bound = place.schema[name]
                beyond = bound + step if kind == "integer" else bound + step * max(1e-9, abs(bound) * 1e-9)
                yield from (json.dumps(bound), json.dumps(beyond))
        yield from _NUMBERS
    elif kind == "string":
        longest = place.schema.get("maxLength")
        if longest is not None:
            yield from (json.dumps("z" * longest), json.dumps("z" * (longest + 1)), json.dumps("0" * longest))
        yield from map(json.dumps, _TEXTS)
        yield from (json.dumps(word) for word in place.schema.get("enum", ()))
    elif kind == "boolean":
        yield from ("false", '"maybe"', "2")
    yield from _OTHERS


def _repeated(example: Any, count: int) -> str:
    return json.dumps([example] * count)


def cases(message: Message, per_field: int | None = None) -> Iterator[Case]:
    """Every field of a message, which must have all of them, with every value; then without it, and with one more.

    With `per_field`, so many of the values of each field, drawn anew for every field and always the same.
    """
    rng = random.Random(type(message).__name__)
    kind = type(message)
    document = message.model_dump(mode="json")
    for place in places(kind):
        assert _has(document, place.path), f"the example of {kind.__name__} has no {'.'.join(map(str, place.path))}"
        texts = list(values(place))
        if place.schema.get("type") == "array":
            inner = _at(document, place.path)
            texts += [_repeated(inner[0], count) for count in (place.schema.get("maxItems", 0), 1000) if inner]
        texts = list(dict.fromkeys(texts))
        for text in texts if per_field is None else rng.sample(texts, min(per_field, len(texts))):
            yield _case(kind, document, place.path, text)
        yield _case(kind, document, place.path, None)
        yield _case(kind, document, (*place.path[:-1], f"{place.path[-1]}_extra"), "1")


def _case(kind: type[Message], document: Any, path: Path, text: str | None) -> Case:
    changed = copy.deepcopy(document)
    holder, last = _at(changed, path[:-1]), path[-1]
    mark = "@@replaced@@"
    if text is None:
        del holder[last]
    elif isinstance(holder, list) and isinstance(last, str):  # one more of a list
        holder.append(mark)
    else:
        holder[last] = mark
    payload = json.dumps(changed).replace(json.dumps(mark), text or "").encode()
    return Case(kind.__name__, path, text or "(absent)", payload, is_accepted(kind, payload))


def is_accepted(kind: type[Message], payload: bytes) -> bool:
    """Whether the contract takes a payload for such a message."""
    try:
        decode(kind, payload)
    except ProtocolError:
        return False
    return True


def combined(message: Message, rng: random.Random, fields: int) -> bytes:
    """A message with several fields replaced at once."""
    kind = type(message)
    document = message.model_dump(mode="json")
    found = places(kind)
    marks: dict[str, str] = {}
    for number, place in enumerate(rng.sample(found, min(fields, len(found)))):
        if _has(document, place.path):  # unless what holds it was replaced already
            mark = f"@@{number}@@"
            _at(document, place.path[:-1])[place.path[-1]] = mark
            marks[mark] = rng.choice(list(values(place)))
    text = json.dumps(document)
    for mark, value in marks.items():
        text = text.replace(json.dumps(mark), value)
    return text.encode()


def _at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def _has(document: Any, path: Path) -> bool:
    try:
        holder = _at(document, path[:-1])
        holder[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(holder, dict | list)  # a mark is a string, of which each letter has an index
