"""Every number of every message has finite bounds, every text and list a greatest length."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol import envelope, messages, orders, updates
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import MAX_LABEL_LENGTH, Conditions, Message, RuntimeSetting

#: What these hold is the coordinator's own affair; a message's size bounds it.
FREE = {("RunPage", "devices"), ("RunEvents", "events")}


def message_kinds() -> list[type[BaseModel]]:
    """Every class that crosses the wire, and the values in them."""
    found: dict[type[BaseModel], None] = {Architecture: None, DeviceProfile: None, envelope.Envelope: None}
    for module in (messages, orders, updates):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Message):
                found[value] = None
    return list(found)


def unbounded(kind: type[BaseModel]) -> list[str]:
    schema = kind.model_json_schema()
    return list(_unbounded(schema, schema.get("$defs", {}), kind.__name__))


def _unbounded(schema: dict[str, Any], definitions: dict[str, Any], where: str) -> list[str]:
    found: list[str] = []
    if "$ref" in schema:
        return _unbounded(definitions[schema["$ref"].rpartition("/")[2]], definitions, where)
    for branch in schema.get("anyOf", ()):
        found += _unbounded({**branch, **{k: v for k, v in schema.items() if k in _LIMITS}}, definitions, where)
    kind = schema.get("type")
    if "const" in schema or "enum" in schema or kind in ("null", "boolean"):
        return found
    if kind in ("number", "integer"):
        least = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
        most = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
        found += [] if math.isfinite(least) and math.isfinite(most) else [f"{where}: a number without bounds"]
    elif kind == "string":
        found += [] if "maxLength" in schema else [f"{where}: a text without a greatest length"]
    elif kind == "array":
        found += [] if "maxItems" in schema else [f"{where}: a list without a greatest length"]
        found += _unbounded(schema["items"], definitions, f"{where}[]")
    elif kind == "object" and "properties" in schema:
        for name, inner in schema["properties"].items():
            if (where, name) not in FREE:
                found += _unbounded(inner, definitions, f"{where}.{name}")
    elif kind == "object":
        found += [] if "maxProperties" in schema else [f"{where}: a mapping without a greatest length"]
        found += _unbounded({"type": "string", **schema.get("propertyNames", {})}, definitions, f"{where} key")
        found += _unbounded(schema["additionalProperties"], definitions, f"{where} value")
    elif "anyOf" not in schema:
        found.append(f"{where}: anything at all")
    return found


_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxLength", "maxItems")


@pytest.mark.parametrize("kind", message_kinds(), ids=lambda kind: kind.__name__)
def test_every_field_is_bounded(kind: type[BaseModel]) -> None:
    assert unbounded(kind) == []


def test_a_field_without_bounds_is_found() -> None:
    class Careless(Message):
        latency_ms: float
        name: str
        samples: tuple[int, ...]

    assert len(unbounded(Careless)) == 4  # the list, and the numbers in it


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e200])
def test_no_number_of_a_message_takes_what_no_device_has(value: float) -> None:
    for kind in (Conditions, MicroBenchmarks):
        for name, field in kind.model_fields.items():
            if "float" in str(field.annotation) or field.metadata:
                with pytest.raises(ValidationError):
                    kind(**{name: value})


def test_an_impossible_reading_counts_as_a_missing_sensor() -> None:
    found = of_readings(Conditions, temperature_c=1e308, clock_mhz=1500.0, load_1min=math.nan, battery_percent=255.0)
    assert found == Conditions(clock_mhz=1500.0)


def test_a_label_fits_a_file_name_and_stays_unique() -> None:
    many = [RuntimeSetting(affinity=tuple(range(first, first + 256))) for first in range(3)]
    labels = {setting.label for setting in many}
    assert len(labels) == 3
    assert all(len(label) <= MAX_LABEL_LENGTH for label in labels)
    # Labels that stores know already stay as they are.
    assert RuntimeSetting(affinity=(4, 5)).label == "onnxruntime_cpu_1t_fp32_core4-5"
