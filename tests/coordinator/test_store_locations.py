"""What `--store` takes, and one clear line with the next action for each way in which it may be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rigs import brokers
from rigs.command_line import fleetnas
from rigs.postgresql import LOCKED_PASSWORD, LOCKED_USER, PostgreSQL, on_postgresql
from rigs.store_examples import MEASUREMENT, run_record, task_record
from sqlalchemy import inspect, text

from fleetnas.coordinator.store.database import Database, shown_location
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import FleetnasError, StoreError, StoreUnavailableError
from fleetnas.fleet_protocol.messages import TaskKey


def refusal(location: str) -> str:
    """The line that answers it."""
    with pytest.raises(FleetnasError) as refused:
        MeasurementStore.open(location)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


class TestLocations:
    @pytest.mark.parametrize("form", ["{}/a/runs.sqlite", "sqlite:///{}/runs.sqlite"])
    def test_a_file_or_its_url(self, tmp_path: Path, form: str) -> None:
        store = MeasurementStore.open(form.format(tmp_path))
        store.create_run(run_record())
        store.close()
        assert list(tmp_path.rglob("runs.sqlite"))

    @pytest.mark.parametrize("url", ["mysql://user@host/db", "postgresql+psycopg2://host/db", "file://runs.sqlite"])
    def test_another_kind_of_database(self, url: str) -> None:
        assert "SQLite or PostgreSQL" in refusal(url)
        assert "postgresql+psycopg://user@host/database" in refusal(url)

    @pytest.mark.parametrize("url", ["://runs.sqlite", "postgresql+psycopg://host:port/db"])
    def test_what_is_no_url_does_not_have_its_password_repeated(self, url: str) -> None:
        assert "no URL that can be read" in refusal(url.replace("host", "user:secret@host"))
        assert "secret" not in refusal(url.replace("host", "user:secret@host"))

    def test_a_missing_driver_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        assert "-m pip install 'psycopg[binary]>=" in refusal("postgresql+psycopg://user@host/db")

    def test_nothing_listens_there(self) -> None:
        line = refusal(f"postgresql+psycopg://user:secret@127.0.0.1:{brokers.free_port()}/db")
        assert "Connection refused" in line
        assert "check that the server runs" in line
        assert "secret" not in line

    def test_no_such_host(self) -> None:
        assert "correct the host" in refusal("postgresql+psycopg://user@no-such-host.invalid/db")

    def test_the_command_line_says_it_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = fleetnas(capsys, "runs", "--store", "mysql://user@host/db")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "SQLite or PostgreSQL" in err

    def test_a_password_is_never_shown(self) -> None:
        assert shown_location("postgresql://user:secret@host/db") == "postgresql+psycopg://user:***@host/db"
        assert shown_location("runs.sqlite") == "runs.sqlite"


@on_postgresql
class TestServer:
    def test_short_forms_of_the_url(self, postgresql_url: str) -> None:
        for scheme in ("postgresql", "postgres"):
            MeasurementStore.open(postgresql_url.replace("postgresql+psycopg", scheme)).close()

    def test_unknown_user(self, postgresql_server: PostgreSQL) -> None:
        assert "createuser" in refusal(postgresql_server.url("postgres", user="nobody_here"))

    def test_unknown_database(self, postgresql_server: PostgreSQL) -> None:
        assert "createdb" in refusal(postgresql_server.url("no_such_database"))

    @pytest.mark.parametrize("password", [None, "wrong"])
    def test_wrong_login(self, postgresql_server: PostgreSQL, password: str | None) -> None:
        line = refusal(postgresql_server.url("postgres", LOCKED_USER, password))
        assert "~/.pgpass" in line

    def test_a_user_without_rights(self, postgresql_server: PostgreSQL, postgresql_url: str) -> None:
        name = postgresql_url.split("@/")[1].split("?")[0]
        with postgresql_server.connect(name) as connection:
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        line = refusal(postgresql_server.url(name, LOCKED_USER, LOCKED_PASSWORD))
        assert "grant this user rights" in line
        assert LOCKED_PASSWORD not in line

    def test_a_server_that_was_away_is_used_again(self, postgresql_server: PostgreSQL, postgresql_url: str) -> None:
        store = MeasurementStore.open(postgresql_url)
        store.create_run(run_record())
        store.put_tasks([task_record("t1")])
        postgresql_server.stop()
        try:
            with pytest.raises(StoreUnavailableError, match="check that the server runs"):
                store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 1.0)
        finally:
            postgresql_server.start()
        assert store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 2.0)
        store.close()


class TestFiles:
    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "folder" in refusal(str(tmp_path / "file" / "runs.sqlite"))

    def test_a_folder_instead_of_a_file(self, tmp_path: Path) -> None:
        assert str(tmp_path) in refusal(str(tmp_path))

    def test_a_file_that_is_no_store_is_refused_with_its_name_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.sqlite"
        path.write_bytes(content := b"not a database at all, but long enough to be one" * 50)
        line = refusal(str(path))
        assert "runs.sqlite" in line
        assert "it is no fleetnas store" in line
        assert path.read_bytes() == content

    def test_the_tables_of_somebody_else_are_left_alone(self, store_url: str) -> None:
        database = Database(store_url)
        with database.changing_schema() as connection:
            connection.execute(text("CREATE TABLE runs (distance_km INTEGER)"))
        with pytest.raises(StoreError, match="runs"):
            MeasurementStore.open(store_url)
        with database.reading() as session:
            assert inspect(session.connection()).get_table_names() == ["runs"]
        database.close()
