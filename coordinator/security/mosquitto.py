"""A mosquitto configuration for one fleet: TLS, no anonymous clients, topics per agent, bounded sizes."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Literal

from fleetnas.fleet_protocol.codec import MAX_CHUNK_BYTES, MAX_JSON_BYTES
from fleetnas.fleet_protocol.topics import DOWN_CHANNELS, UP_CHANNELS, Topics

Login = Literal["certificate", "password"]

#: The login that may use every topic of the fleet.
COORDINATOR = "coordinator"
#: The login that may read the state of the fleet and its searches, and publish nothing.
WATCHER = "watcher"
#: A payload is at most a chunk with its header; a packet also has a topic and framing.
MAX_PACKET_BYTES = max(MAX_JSON_BYTES, MAX_CHUNK_BYTES) + 2048
_PASSWORD_ITERATIONS = 101


def configuration(folder: Path, port: int, login: Login) -> str:
    """Write `mosquitto.conf`; `folder` is the place of the files on the broker's machine."""
    if login == "certificate":
        how = (
            "# The name in a client's certificate is its login.\n"
            "require_certificate true\n"
            "use_identity_as_username true\n"
            f"crlfile {folder / 'revoked.pem'}\n"
        )
    else:
        how = f"require_certificate false\npassword_file {folder / 'passwords'}\n"
    return f"""\
# Written by `fleetnas broker init`. Runs with: mosquitto -c {folder / "mosquitto.conf"}
per_listener_settings false
allow_anonymous false
acl_file {folder / "access-rules"}

listener {port}
cafile {folder / "ca.pem"}
certfile {folder / "server.pem"}
keyfile {folder / "server.key"}
tls_version tlsv1.2
{how}
# Durability is the agents' and the coordinator's: nothing has to outlive the broker.
persistence false
persistent_client_expiration 1h

# No message of the fleet is larger. What does not fit into a queue is lost without a word: the coordinator's has room
# for a flood of one agent, so that the others' messages behind it arrive.
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages 100
max_queued_messages 100000
max_queued_bytes 268435456
queue_qos0_messages false
max_keepalive 300
allow_zero_length_clientid false
set_tcp_nodelay true

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
"""


def access_rules(topics: Topics) -> str:
    """Write the access control list: `%u` is the login, which is an agent's name."""
    everything = topics.coordinator.removesuffix("coordinator/state")
    own = "\n".join(f"pattern write {topics.up('%u', channel)}" for channel in UP_CHANNELS)
    orders = "\n".join(f"pattern read {topics.down('%u', channel)}" for channel in DOWN_CHANNELS)
    seen = "\n".join(f"topic read {topics.every_agent(channel)}" for channel in ("state", "info", "heartbeat"))
    return f"""\
# Written by `fleetnas broker init`. A login may use what is listed here and nothing else.
user {COORDINATOR}
topic readwrite {everything}#

# Whoever watches reads who is there and how searches stand. The patterns for agents below are not for it.
user {WATCHER}
topic read {everything}coordinator/#
{seen}
topic deny {everything}agents/{WATCHER}/#

# An agent, whose login is its name, writes its own topics and reads its orders, its own state and the coordinator's.
{own}
pattern read {topics.up("%u", "state")}
{orders}
pattern read {topics.coordinator}
"""


def password_line(name: str, password: str, salt: bytes) -> str:
    """A line of mosquitto's password file: PBKDF2 with HMAC-SHA-512, as `mosquitto_passwd` writes it.

    The passwords are 256 random bits, so that mosquitto's few iterations suffice.
    """
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PASSWORD_ITERATIONS)
    encoded = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"{name}:$7${_PASSWORD_ITERATIONS}${'$'.join(encoded)}\n"
