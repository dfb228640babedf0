"""Sign and verify orders and files: an agent that knows its coordinator's key obeys no other coordinator.

An *order* is a JSON message to one agent: a task, a cancellation, an acknowledgement. Its last field, `signature`,
has a fixed length, so that it is made and checked over the very bytes on the wire; no canonical form of JSON is needed.
The Ed25519 signature covers the fleet, the agent, the channel, the agent's session, the coordinator's stream of orders,
the order's number in it, and every other byte of the message. An order to another agent, to an earlier process of this
one, or one that was accepted before is therefore refused, although its signature is valid. A task names its bundle by
SHA-256, so a signed task authenticates the bundle too.

`cryptography` is imported only where a key is used.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import MissingDependencyError, ProtocolError, UntrustedError, UsageError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.fleet_protocol.topics import DownChannel

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES = 32
#: Numbers by which an order may lag behind the newest of its stream, as in the anti-replay window of RFC 4303, 3.4.3.
WINDOW = 1024
#: Streams (starts of a coordinator) that an agent remembers within one session; older ones are refused.
MAX_STREAMS = 256
#: Agents whose session is remembered.
_MAX_AGENTS = 20_000

_TOKEN = struct.Struct(">QQQ64s")
_TOKEN_CHARACTERS = 118
_PREFIX, _SUFFIX = b',"signature":"', b'"}'
_FIELD_BYTES = len(_PREFIX) + _TOKEN_CHARACTERS + len(_SUFFIX)
_ORDER_DOMAIN, _FILE_DOMAIN = b"fleetnas order 1\0", b"fleetnas file 1\0"
_READ_BYTES = 1024 * 1024


class OrderSigner:
    """Signs the orders of a coordinator, numbered per agent.

    `stream` tells one start of a coordinator from another and grows with each (microseconds since 1970 do).
    """

    def __init__(self, private_key: bytes, fleet: str, stream: int) -> None:
        self._key = _private_key(private_key)
        self._fleet = fleet
        self._stream = stream
        self._sessions: dict[str, int] = {}
        self._numbers: dict[str, itertools.count[int]] = {}

    def note_session(self, agent: str, session: int) -> None:
        """Sign the next orders for this session of an agent, which announced it."""
        if agent in self._sessions or len(self._sessions) < _MAX_AGENTS:
            self._sessions[agent] = session

    def sign(self, agent: str, channel: DownChannel, message: bytes) -> bytes:
        """Return `message`, an encoded JSON object without a signature, with one for `agent`."""
        session = self._sessions.get(agent, 0)
        number = next(self._numbers.setdefault(agent, itertools.count(1)))
        header = (session, self._stream, number)
        signature = self._key.sign(_signed_bytes(self._fleet, agent, channel, header, message))
        token = base64.urlsafe_b64encode(_TOKEN.pack(*header, signature)).rstrip(b"=")
        return message[:-1] + _PREFIX + token + _SUFFIX


class OrderVerifier:
    """Verifies orders on the agent: knows the pinned keys and the orders that this session accepted."""

    def __init__(self, public_keys: Sequence[bytes], fleet: str, agent: str, session: int) -> None:
        self._keys = [_public_key(key) for key in public_keys]
        self._fleet = fleet
        self._agent = agent
        self._session = session
        self._streams: dict[tuple[int, int], ReplayWindow] = {}
        self._oldest_stream = 0

    def check(self, channel: DownChannel, payload: bytes) -> None:
        """Accept a new order of the coordinator to this process; `UntrustedError` if `payload` is none."""
        message, header, signature = _split(payload)
        session, stream, number = header
        signed = _signed_bytes(self._fleet, self._agent, channel, header, message)
        signer = next((i for i, key in enumerate(self._keys) if _is_signed(key, signature, signed)), None)
        if signer is None:
            raise UntrustedError(
                f"this agent takes orders only from the coordinator whose key is in its credentials, and this "
                f"{channel} is not signed with it for agent {self._agent!r} of fleet {self._fleet!r}; start the "
                "coordinator with its own --credentials, or enroll this agent again",
                answerable=True,
            )
        if session != self._session:
            raise UntrustedError(f"this {channel} is for session {session} of this agent, which is in {self._session}")
        if stream < self._oldest_stream or not self._window(signer, stream).take(number):
            raise UntrustedError(f"order {number} was taken before, or is too old to tell; it is dropped")

    def _window(self, signer: int, stream: int) -> ReplayWindow:
        window = self._streams.get((stream, signer))
        if window is None:
            window = self._streams[stream, signer] = ReplayWindow()
            while len(self._streams) > MAX_STREAMS:
                oldest = min(self._streams)
                self._oldest_stream = oldest[0] + 1
                del self._streams[oldest]
        return window


@dataclass
class ReplayWindow:
    """Which of the newest `WINDOW` numbers have been seen: bit i stands for `newest - i`."""

    newest: int = 0
    _seen: int = field(default=0, repr=False)

    def take(self, number: int) -> bool:
        """Mark `number` as seen; return whether it was new."""
        if number > self.newest:
            ahead = min(number - self.newest, WINDOW)
            self._seen = (self._seen << ahead | 1) & ((1 << WINDOW) - 1)
            self.newest = number
            return True
        behind = self.newest - number
        if behind >= WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


# -- keys and files --------------------------------------------------------------------------------------------


def new_private_key() -> bytes:
    """Return a new Ed25519 private key, 32 bytes."""
    return bytes(_ed25519().Ed25519PrivateKey.generate().private_bytes_raw())


def public_key_of(private_key: bytes) -> bytes:
    """Return the public key, which agents pin, 32 bytes."""
    return _private_key(private_key).public_key().public_bytes_raw()


def fingerprint(public_key: bytes) -> str:
    """Return the key's fingerprint for people: `SHA256:` and 43 characters, as OpenSSH writes it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).rstrip(b"=").decode()


def sign_file(private_key: bytes, path: Path) -> str:
    """Return a detached signature of a file's SHA-256, as text."""
    return base64.b64encode(_private_key(private_key).sign(_FILE_DOMAIN + _file_digest(path))).decode()


def verify_file(public_keys: Sequence[bytes], path: Path, signature: str) -> None:
    """Check that one of the keys signed the file; `UntrustedError` if none did, `UsageError` if it cannot be read."""
    try:
        decoded = base64.b64decode(signature, validate=True)
    except ValueError:
        decoded = b""
    signed = _FILE_DOMAIN + _file_digest(path)
    if not any(_is_signed(_public_key(key), decoded, signed) for key in public_keys):
        known = ", ".join(fingerprint(key) for key in public_keys)
        raise UntrustedError(
            f"{path} was altered after it was signed, or signed with another key than {known}; fetch it again from "
            "its publisher"
        )


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason_of(error)}; check the path") from error
    return digest.digest()


# -- bytes -----------------------------------------------------------------------------------------------------


def _signed_bytes(fleet: str, agent: str, channel: str, header: tuple[int, int, int], message: bytes) -> bytes:
    # Names hold neither a slash nor a zero byte, so that no two contexts give the same bytes.
    context = f"{fleet}/{agent}/{channel}\0".encode()
    return _ORDER_DOMAIN + context + struct.pack(">QQQ", *header) + message


def _split(payload: bytes) -> tuple[bytes, tuple[int, int, int], bytes]:
    """The message as it was signed, the numbers of its token, and the signature."""
    unsigned = UntrustedError(
        "this agent takes orders only from the coordinator whose key is in its credentials, and this one is not "
        "signed; start the coordinator with its own --credentials",
        answerable=True,
    )
    message, found = payload[:-_FIELD_BYTES] + b"}", payload[-_FIELD_BYTES:]
    if not (found.startswith(_PREFIX) and found.endswith(_SUFFIX)):
        raise unsigned
    text = found[len(_PREFIX) : -len(_SUFFIX)]
    try:
        token = base64.urlsafe_b64decode(text + b"==")
    except ValueError:
        raise unsigned from None
    # One way to write a token, so that every altered bit of a message is refused.
    if len(token) != _TOKEN.size or base64.urlsafe_b64encode(token).rstrip(b"=") != text:
        raise unsigned
    session, stream, number, signature = _TOKEN.unpack(token)
    return message, (session, stream, number), signature


def _is_signed(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _private_key(raw: bytes) -> Ed25519PrivateKey:
    key: Ed25519PrivateKey = _load(_ed25519().Ed25519PrivateKey.from_private_bytes, raw)
    return key


def _public_key(raw: bytes) -> Ed25519PublicKey:
    key: Ed25519PublicKey = _load(_ed25519().Ed25519PublicKey.from_public_bytes, raw)
    return key


def _load(load: Any, raw: bytes) -> Any:
    try:
        return load(raw)
    except ValueError as error:
        raise ProtocolError(f"an Ed25519 key has {KEY_BYTES} bytes and this one {len(raw)} ({error})") from error


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependencyError(
            f"credentials with keys need the cryptography package ({error}); run: {install_extra('secure')}"
        ) from error
    return ed25519
