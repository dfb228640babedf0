"""Define every error that fleetnas raises on purpose.

The tree::

    FleetnasError
    ├── UsageError                 a request cannot be fulfilled as it is
    │   ├── ArchitectureError      an architecture is not in its design space
    │   ├── InfeasibleTargetError  no subnet can meet a bound; names the fastest one found
    │   └── DuplicateAgentError    two agents use one name
    ├── BundleError                a supernet bundle cannot be used
    │   ├── CorruptBundleError     not a bundle, truncated, or altered
    │   ├── HashMismatchError      the bytes are not the ones that were announced
    │   └── MirrorError            a mirror cannot serve a bundle, which then comes through the broker
    ├── CheckpointError            a checkpoint cannot be read, or is of another family
    │   └── DownloadError          a published checkpoint cannot be fetched
    ├── TrainingError              a training cannot go on
    ├── RuntimeUnavailableError    a runtime or its execution provider does not load here
    ├── MissingDependencyError     an optional package is not installed; names the extra
    ├── CodeReplacedError          fleetnas was updated on disk while this process runs the code from before
    ├── ProtocolError              a message breaks the wire contract
    │   └── UntrustedError         not signed by the coordinator whose key is pinned, or not for us, or not now
    ├── TransportError             the broker cannot be used
    │   └── BrokerUnreachableError nothing answers at the broker's address
    ├── StoreError                 the measurement store cannot be used
    │   └── StoreUnavailableError  not now: its disk is full, another process holds it, its server is away
    └── ResultsError               the folder of results cannot be written; the store has everything

A message gives the rule, the values that break it and the next action. A measurement that fails on a device
is data (`fleetnas.fleet_protocol.messages.Failed`), not one of these.
"""

from __future__ import annotations


class FleetnasError(Exception):
    """Base of every deliberate error; the command lines print its text and exit with `exit_code`."""

    exit_code = 1


class UsageError(FleetnasError):
    """A request cannot be fulfilled as it is."""

    exit_code = 2


class ArchitectureError(UsageError):
    """An architecture is not in its design space."""


class InfeasibleTargetError(UsageError):
    """No subnet of the design space meets a bound."""


class DuplicateAgentError(UsageError):
    """Two agents announce themselves under one name."""


class BundleError(FleetnasError):
    """A supernet bundle cannot be used."""


class CorruptBundleError(BundleError):
    """The file is not a supernet bundle, or was truncated or altered."""


class HashMismatchError(BundleError):
    """Bytes do not have the SHA-256 that was announced for them."""


class MirrorError(BundleError):
    """A mirror cannot serve a bundle."""


class CheckpointError(FleetnasError):
    """A checkpoint cannot be read, or belongs to another family."""


class DownloadError(CheckpointError):
    """A published checkpoint cannot be fetched."""


class TrainingError(FleetnasError):
    """A training cannot go on: its loss is not finite, or a process that reads its images has ended."""


class RuntimeUnavailableError(FleetnasError):
    """A runtime, or the chosen execution provider, does not load on this machine."""


class MissingDependencyError(FleetnasError):
    """An optional package is not installed."""


class CodeReplacedError(FleetnasError):
    """The installed fleetnas is not the one that this process runs any more."""


class ProtocolError(FleetnasError):
    """A message breaks the wire contract."""


class UntrustedError(ProtocolError):
    """A message is not signed with a pinned key, or was signed for another agent or another session.

    `answerable`: its sender may be an honest coordinator without the right key, which should learn it.
    """

    def __init__(self, text: str, *, answerable: bool = False) -> None:
        super().__init__(text)
        self.answerable = answerable


class TransportError(FleetnasError):
    """The broker cannot be used."""


class BrokerUnreachableError(TransportError):
    """Nothing answers at the broker's address."""


class StoreError(FleetnasError):
    """The measurement store cannot be used."""


class StoreUnavailableError(StoreError):
    """The store cannot be used now, and the same call may succeed later."""


class ResultsError(FleetnasError):
    """The results of a run cannot be written to their folder."""
