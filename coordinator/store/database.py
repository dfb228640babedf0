"""The database of a store: its URL, its connections, and one clear line for each of its errors."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from fleetnas.coordinator.store.claims import Claims, FileClaims, ServerClaims
from fleetnas.device_profiles.plain_text import PRINTABLE
from fleetnas.fleet_protocol.error_text import joined_lines
from fleetnas.fleet_protocol.errors import MissingDependencyError, StoreError, StoreUnavailableError, UsageError
from fleetnas.fleet_protocol.installing import install_extra

_CONNECT_TIMEOUT_S = 10
#: How long SQLite waits for another process that is writing.
_BUSY_TIMEOUT_MS = 10_000
_LOOK_AGAIN_S = 0.01
_POSTGRESQL = "postgresql+psycopg"
_FORMS = "give a file, or a URL such as postgresql+psycopg://user@host/database"

#: Words of PostgreSQL and its client when there is no connection, and advice; the first match counts.
_CONNECTION_ADVICE = (
    ("password authentication failed", "check the user, and the password in ~/.pgpass or $PGPASSWORD"),
    ("no password supplied", "put its password into ~/.pgpass or $PGPASSWORD"),
    ("peer authentication failed", "connect as that system user, or by host name with a password"),
    ("no pg_hba.conf entry", "let this machine and user in with a line in the server's pg_hba.conf"),
    ("role ", "create the user with `createuser`, or correct it in the URL"),
    ("database ", "create it with `createdb`, or correct its name in the URL"),
    ("resolve host", "correct the host in the URL"),
    ("translate host", "correct the host in the URL"),
    ("invalid connection option", "correct what follows the `?` in the URL"),
)
_SERVER_ADVICE = "check that the server runs and that its host and port in --store are right"
_MAKE_WRITABLE = "make the file and its folder writable, or give another --store"
#: A class that SQLAlchemy names before a message, such as `(builtins.ValueError)`.
_CLASS = re.compile(r"^\((?:builtins|sqlite3|psycopg)[\w.]*\)\s*")
#: Words of SQLite, and advice.
_FILE_ADVICE = (
    ("disk is full", "free some space there; what was stored is safe"),
    ("disk i/o error", "check the disk; what was stored before is safe"),
    ("database is locked", "another process is writing; end it, or wait for it"),
    ("readonly", _MAKE_WRITABLE),
    ("read-only", _MAKE_WRITABLE),
    ("not a database", "it is no fleetnas store; give another --store"),
    ("malformed", "the file is damaged: restore it from a copy, or save what is left with `sqlite3 FILE .recover`"),
    ("decode to utf-8", "the file is damaged: restore it from a copy, or give another --store"),
    ("no such table", "a table of it is missing: restore it from a copy, or give another --store"),
    ("no such column", "a column of it is missing: restore it from a copy, or give another --store"),
    ("locking protocol", "its file system gives no locks: put the store on a disk of this machine"),
)
#: Errors of a server that may end by themselves, by SQLSTATE class: no connection, a collision with another
#: coordinator, no space or memory, going down.
_PASSING_CLASSES = ("08", "40", "53", "57")
_PASSING_FILE_WORDS = ("disk is full", "disk i/o error", "database is locked", "unable to open", "readonly")


@dataclass(frozen=True)
class UnreadableJson:
    """Placeholder for the content of a damaged JSON column, so that the error can name the row."""

    reason: str


def _read_json(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        return UnreadableJson(joined_lines(str(error)))


#: Raw times are most of the JSON; this is four times as fast as the standard library's, and as exact.
_JSON: dict[str, Any] = {"json_serializer": lambda value: to_json(value).decode(), "json_deserializer": _read_json}


class Database:
    """Connections to one store. Transactions that write wait for each other; those that read do not."""

    def __init__(self, location: str, *, to_read: bool = False) -> None:
        """Take a URL or, without `://`, a file's path; nothing is opened yet.

        A file that cannot be written may still be opened `to_read`; `read_only` is then True.

        Raises:
            UsageError: no such kind of store.
            MissingDependencyError: psycopg is not installed.
            StoreError: the file's folder cannot be made.
        """
        url = _url(location)
        self.name = _shown(url)  #: for people: without a password
        self.dialect = url.get_backend_name()  #: its name
        self.in_memory = self.dialect == "sqlite" and url.database in (None, "", ":memory:")
        has_file = self.dialect == "sqlite" and not self.in_memory
        self._file = file = Path(url.database) if has_file and url.database else None
        #: Nothing can be added or changed.
        self.read_only = to_read and file is not None and _is_read_only(file)
        self._reader = _read_only_engine(file) if self.read_only and file is not None else _engine(url)
        # SQLite refuses to turn a reading transaction into a writing one once another connection has written.
        self._writer = self._reader.execution_options(sqlite_begin="IMMEDIATE")
        self._claims: Claims = ServerClaims(self._reader) if self.dialect == "postgresql" else FileClaims(file)
        self._observe_write: Callable[[float], object] = lambda _: None

    @property
    def engine_dialect(self) -> Dialect:
        """SQLAlchemy's dialect, for statements that are compiled once."""
        return self._reader.dialect

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that reads one consistent state; `StoreError` where that fails."""
        with self._errors(), Session(self._reader) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that writes all or nothing, on disk when it ends.

        `StoreUnavailableError` where the same transaction may succeed later.
        """
        began_s = time.monotonic()
        with self._errors(), Session(self._writer) as session, session.begin():
            yield session
        self._observe_write(time.monotonic() - began_s)

    def observe_writes(self, observe: Callable[[float], object]) -> None:
        """Call `observe` with the duration of each writing transaction in seconds, its wait for others included."""
        self._observe_write = observe

    @contextmanager
    def changing_schema(self) -> Iterator[Connection]:
        """Open a transaction that changes the tables: one process at a time."""
        with self._errors(), self._writer.begin() as connection:
            if self.dialect == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('fleetnas schema'))")
            yield connection

    def claim(self, run_id: str) -> bool:
        """Claim a run until `close`, or until this process ends; False where another process has it."""
        with self._errors():
            return self._claims.take(run_id)

    def close(self) -> None:
        """Close the file or the connections."""
        self._claims.close()
        self._reader.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise StoreError(f"the store {self.name} refuses this: {_reason(error)}") from error
        except SQLAlchemyError as error:
            raise self._clear(error) from error
        except (ValueError, TypeError, OverflowError) as error:
            raise StoreError(
                f"the store {self.name} holds, or was given, a value that cannot be kept there: "
                f"{joined_lines(str(error))}; restore it from a copy, or give another --store"
            ) from error

    def _clear(self, error: SQLAlchemyError) -> StoreError:
        reason = _reason(error)
        words = reason.lower()
        kind = StoreError
        if self.dialect == "sqlite":
            advice = _advice(words, _FILE_ADVICE, "check its path, its rights and the free disk space")
            if self._file is not None and _is_read_only(self._file):
                advice = _MAKE_WRITABLE
            if any(word in words for word in _PASSING_FILE_WORDS):
                kind = StoreUnavailableError
        else:
            state = getattr(getattr(error, "orig", None), "sqlstate", None)
            lost = isinstance(error, DBAPIError) and error.connection_invalidated
            if state is None or lost or state.startswith(_PASSING_CLASSES):
                kind = StoreUnavailableError
            advice = _advice(words, _CONNECTION_ADVICE, _SERVER_ADVICE)
            if state is not None and state.startswith("53"):
                advice = "free some space or connections on the server; what was stored is safe"
            elif state is not None and not state.startswith(_PASSING_CLASSES):
                advice = "grant this user rights" if state == "42501" else "see the server's log"
        return kind(f"the store {self.name} cannot be used: {reason}; {advice}")


def _url(location: str) -> URL:
    if "://" not in location:
        try:
            path = Path(location).expanduser()
        except RuntimeError:
            raise UsageError(
                f"the store {location} lies in a home folder that is not known here; give --store with a whole path"
            ) from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store's folder {path.parent} cannot be made ({error}); give another --store"
            ) from error
        return URL.create("sqlite", database=str(path))
    try:
        url = make_url(location)
    except (ArgumentError, ValueError) as error:
        # The text may hold a password: it is not repeated.
        raise UsageError(f"--store is no URL that can be read ({type(error).__name__}); {_FORMS}") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=_POSTGRESQL)
    if url.drivername not in ("sqlite", _POSTGRESQL):
        raise UsageError(f"a store is SQLite or PostgreSQL, not {url.drivername}; {_FORMS}")
    if url.drivername == _POSTGRESQL and find_spec("psycopg") is None:
        raise MissingDependencyError(
            f"a store in PostgreSQL needs psycopg, which is not installed; run `{install_extra('postgres')}`"
        )
    return url


def shown_location(location: str) -> str:
    """Return a `--store` as it may be printed: a URL without its password."""
    return _shown(_url(location)) if "://" in location else location


def _shown(url: URL) -> str:
    """Return a file's path, or a URL without its password."""
    if url.database is not None:  # a file's name need not be text, and a URL is
        url = url.set(database=url.database.encode("utf-8", PRINTABLE).decode())
    if url.drivername == "sqlite" and url.database:
        return url.database  # as a user gives it
    return url.render_as_string(hide_password=True)


def _engine(url: URL) -> Engine:
    if url.drivername == _POSTGRESQL:
        # A server that was started again is noticed before a transaction begins, not in the middle of one.
        timeout = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_TIMEOUT_S}
        try:
            return create_engine(url, pool_pre_ping=True, connect_args=timeout, **_JSON)
        except (NoSuchModuleError, ImportError) as error:
            raise MissingDependencyError(
                f"psycopg does not load here ({joined_lines(str(error))}); run `{install_extra('postgres')}`"
            ) from error
    # Python's own idea of when a transaction begins leaves out changes of the tables; `_begin` sends BEGIN instead.
    engine = create_engine(url, connect_args={"isolation_level": None}, **_JSON)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        # Agents forget acknowledged results. WAL with `synchronous=NORMAL` survives kill -9, but a power
        # cut may undo its last commits; FULL syncs each commit. Batches share one, so it costs little.
        for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        _keep_a_log(cursor)
        cursor.close()

    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}")


def _is_read_only(file: Path) -> bool:
    return file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def _read_only_engine(file: Path) -> Engine:
    """Make connections that write nothing; each transaction has its own, and so sees what was written meanwhile."""
    engine = create_engine("sqlite://", creator=lambda: _connect_to_read(file.absolute()), poolclass=NullPool, **_JSON)
    event.listen(engine, "begin", _begin)
    return engine


def _connect_to_read(file: Path) -> sqlite3.Connection:
    try:
        return _opened_to_read(file, "mode=ro")
    except sqlite3.OperationalError:
        # SQLite reads a log only beside an index, and may not make one here. Without a log the file is all there is,
        # and `immutable` says that it needs no index.
        for log in (file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-journal")):
            if log.exists() and log.stat().st_size:
                raise StoreError(
                    f"the store {file} can only be read here, and its newest content is in {log.name}, which nobody "
                    "can read without writing beside it: copy both files to a folder of yours, and give that as --store"
                ) from None
        return _opened_to_read(file, "mode=ro&immutable=1")


def _opened_to_read(file: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, check_same_thread=False, isolation_level=None)
    try:
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _keep_a_log(cursor: sqlite3.Cursor) -> None:
    """Set WAL, which a file keeps. Where several processes set it on a new file at once, one succeeds."""
    give_up_s = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_s:
                raise
        time.sleep(_LOOK_AGAIN_S)


def _advice(words: str, known: tuple[tuple[str, str], ...], otherwise: str) -> str:
    return next((advice for sign, advice in known if sign in words), otherwise)


def _reason(error: SQLAlchemyError) -> str:
    """Return the words of the driver, else SQLAlchemy's own without its statement, class names and links."""
    found = getattr(error, "orig", None) or (error.args[0] if error.args else error)
    return joined_lines(_CLASS.sub("", str(found)))
