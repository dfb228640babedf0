"""Messages that nobody honest sends: mutants of genuine ones, JSON of the wrong shape, and noise."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from hypothesis import strategies as st

#: JSON documents of any shape, as hypothesis builds them.
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())
NOISE = st.lists(st.binary(max_size=80) | DOCUMENTS, min_size=20, max_size=20)

_ODD_VALUES = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        2**63,
        -(2**70),
        10**300,
        float("nan"),
        float("inf"),
        "",
        "\x1b[2J",
        "\u202e",
        "a" * 70_000,
    ),
    *([], {}, [[]], {"a": {}}, "../../etc/passwd", "0" * 64, [1] * 10_000),
)


def mutant(genuine: Sequence[bytes], rng: random.Random) -> bytes:
    """One of `genuine`, changed."""
    payload = bytearray(rng.choice(genuine))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        start = rng.randrange(len(payload))
        del payload[start : start + rng.randint(1, 40)]
    elif kind == 2:
        start = rng.randrange(len(payload))
        payload[start:start] = rng.randbytes(rng.randint(1, 40))
    elif kind == 3:
        start = rng.randrange(len(payload))
        payload += payload[start:] * rng.randint(1, 3)
    elif kind == 4:
        payload = bytearray(rng.randbytes(rng.choice((1, 3, 40, 41, 500))))
    elif kind == 5:
        payload = bytearray(rng.choice((b"[", b'{"a":', b"-", b'"')) * rng.choice((1, 1000, 70_000)))
    else:
        return _restructured(bytes(payload), rng)
    return bytes(payload)


def _restructured(payload: bytes, rng: random.Random) -> bytes:
    """One value somewhere in a JSON object replaced, removed or added to."""
    try:
        document = json.loads(payload)
    except ValueError:
        return payload[::-1]
    if not isinstance(document, dict):
        return payload[::-1]
    place = document
    while True:
        key = rng.choice(list(place))
        if isinstance(place[key], dict) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        break
    action = rng.randrange(3)
    if action == 0:
        del place[key]
    elif action == 1:
        place[key] = rng.choice(_ODD_VALUES)
    else:
        place[rng.choice(("extra", "__class__", key + "\u0000"))] = rng.choice(_ODD_VALUES)
    return json.dumps(document).encode()
