"""The tables as the newest revision in `migrations/` leaves them. Only this package handles their rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Integer, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

#: The newest revision: a store that is at it is opened without looking further.
HEAD_REVISION = "0014"

# SQLite only numbers rows by itself in a column whose type is exactly INTEGER.
_Serial = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Base of every table."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, float: Double}  # noqa: RUF012


class RunRow(Base):
    """One campaign."""

    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    fleet: Mapped[str] = mapped_column(String(64))
    supernet: Mapped[str] = mapped_column(Text)
    bundle_sha256: Mapped[str] = mapped_column(String(64))
    settings: Mapped[dict[str, Any]]
    created_unix_s: Mapped[float] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(String(16))
    finished_unix_s: Mapped[float | None]
    name: Mapped[str | None] = mapped_column(String(64), unique=True, index=True)


class DeviceRow(Base):
    """One device setting of a run.

    `learning` holds [measurements, MAPE in percent, rank correlation, held out, transfer weight].
    """

    __tablename__ = "devices"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    setting_label: Mapped[str] = mapped_column(String(700), primary_key=True)
    setting: Mapped[dict[str, Any]]
    info: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    learning: Mapped[list[Any]]
    wire_bytes: Mapped[int] = mapped_column(BigInteger)
    targets_ms: Mapped[list[Any] | None]
    targets_note: Mapped[str | None] = mapped_column(Text)
    targets: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    board: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class TaskRow(Base):
    """One subnet to be measured on one device setting."""

    __tablename__ = "tasks"

    task_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), index=True)
    device: Mapped[str] = mapped_column(String(64))
    setting_label: Mapped[str] = mapped_column(String(700))
    purpose: Mapped[str] = mapped_column(String(16))
    architecture: Mapped[dict[str, Any]]
    target_ms: Mapped[float | None]
    predicted_ms: Mapped[float | None]
    predicted_std_ms: Mapped[float | None]
    predicted_accuracy: Mapped[float | None]
    model_sha256: Mapped[str | None] = mapped_column(String(64))
    calibration: Mapped[bytes | None] = mapped_column(LargeBinary)
    attempt: Mapped[int]
    asked_half_width_percent: Mapped[float | None]
    asked_sessions: Mapped[int | None]
    target: Mapped[str] = mapped_column(String(64), server_default=text("''"))
    asked_percentiles: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    outcomes: Mapped[list[OutcomeRow]] = relationship(back_populates="task")


class OutcomeRow(Base):
    """The end of one attempt; `outcome_id` grows in the order of arrival, whatever the clock says."""

    __tablename__ = "outcomes"
    __table_args__ = (UniqueConstraint("task_id", "attempt"),)

    outcome_id: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.task_id"))
    attempt: Mapped[int]
    stored_unix_s: Mapped[float]
    task: Mapped[TaskRow] = relationship(back_populates="outcomes")
    measurement: Mapped[MeasurementRow | None] = relationship(cascade="all")
    failure: Mapped[FailureRow | None] = relationship(cascade="all")


class MeasurementRow(Base):
    """Every field of `fleetnas.fleet_protocol.messages.Measurement`, raw times included."""

    __tablename__ = "measurements"

    outcome_id: Mapped[int] = mapped_column(ForeignKey("outcomes.outcome_id"), primary_key=True)
    model_sha256: Mapped[str] = mapped_column(String(64))
    model_bytes: Mapped[int] = mapped_column(BigInteger)
    median_ms: Mapped[float]
    mad_ms: Mapped[float]
    p90_ms: Mapped[float]
    min_ms: Mapped[float]
    runs: Mapped[int]
    inner_loops: Mapped[int]
    half_width_percent: Mapped[float]
    quality: Mapped[str] = mapped_column(String(16))
    undisturbed_ms: Mapped[float | None]
    undisturbed_half_width_percent: Mapped[float] = mapped_column(server_default="0")
    reference: Mapped[str | None] = mapped_column(String(12))
    reference_ms: Mapped[float | None]
    levels_ms: Mapped[list[Any] | None] = mapped_column(JSON)
    condition: Mapped[str] = mapped_column(String(16), server_default="as-is")
    regime_unix_s: Mapped[float] = mapped_column(server_default="0")
    times_us: Mapped[list[Any]]
    block_medians_ms: Mapped[list[Any]]
    mean_ms: Mapped[float | None]
    percentiles: Mapped[list[Any] | None] = mapped_column(JSON)
    sessions: Mapped[int] = mapped_column(server_default="1")
    session_medians_ms: Mapped[list[Any] | None] = mapped_column(JSON)
    provider: Mapped[str] = mapped_column(String(64))
    build_ms: Mapped[float]
    load_ms: Mapped[float]
    before: Mapped[dict[str, Any]]
    after: Mapped[dict[str, Any]]
    energy_mj: Mapped[float | None]
    layers: Mapped[list[Any] | None] = mapped_column(JSON)
    finished_unix_s: Mapped[float]


class FailureRow(Base):
    """The reason of a failed attempt."""

    __tablename__ = "failures"

    outcome_id: Mapped[int] = mapped_column(ForeignKey("outcomes.outcome_id"), primary_key=True)
    reason: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)


class WinnerRow(Base):
    """One decided target; every field of `fleetnas.coordinator.records.stored.WinnerRecord`.

    `target_ms` is 0 where a given subnet is compared with no target, and where the target is no latency.
    """

    __tablename__ = "winners"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    setting_label: Mapped[str] = mapped_column(String(700), primary_key=True)
    target_ms: Mapped[float] = mapped_column(primary_key=True)
    subnet: Mapped[str] = mapped_column(String(12), primary_key=True)
    target: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    architecture: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    predicted_ms: Mapped[float | None]
    measured_ms: Mapped[float | None]
    verified_ms: Mapped[float | None]
    typical_ms: Mapped[float | None]
    predicted_accuracy: Mapped[float | None]
    accuracy: Mapped[float | None]
    accuracy_images: Mapped[int | None] = mapped_column(BigInteger)
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    macs: Mapped[int | None] = mapped_column(BigInteger)
    peak_activation_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text)
    value: Mapped[float | None]
    value_low: Mapped[float | None]
    value_high: Mapped[float | None]
    typical_value: Mapped[float | None]


class EvaluationRow(Base):
    """Answers of one model file to images; every field of `fleetnas.coordinator.records.stored.EvaluationRecord`."""

    __tablename__ = "evaluations"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(12), primary_key=True)
    runtime: Mapped[str] = mapped_column(String(64), primary_key=True)
    precision: Mapped[str] = mapped_column(String(16), primary_key=True)
    part: Mapped[str] = mapped_column(String(16), primary_key=True)
    classes: Mapped[int]
    images: Mapped[int] = mapped_column(BigInteger)
    answers: Mapped[bytes] = mapped_column(LargeBinary)


class BaselineRow(Base):
    """One baseline of a device setting; every field of `fleetnas.coordinator.records.baselines.BaselineRecord`."""

    __tablename__ = "baselines"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    setting_label: Mapped[str] = mapped_column(String(700), primary_key=True)
    baseline: Mapped[str] = mapped_column(String(64), primary_key=True)
    measurements: Mapped[list[Any]]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    predicted_accuracy: Mapped[float | None]
    accuracy: Mapped[float | None]
    accuracy_images: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    done: Mapped[bool]


class DistrustedRow(Base):
    """A device that no prior is learned from."""

    __tablename__ = "distrusted_devices"

    device: Mapped[str] = mapped_column(String(64), primary_key=True)
