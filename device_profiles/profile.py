"""Schema of a device profile: the facts about a device on which latency depends."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fleetnas.device_profiles.quantities import Megabytes, Megahertz, Microseconds, ShortText, Throughput
from fleetnas.device_profiles.text_fields import PlainText


class CpuCluster(BaseModel):
    """Cores of one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: PlainText = Field(max_length=64, description="core design, such as Cortex-A72")
    cores: int = Field(ge=1, le=1024)
    max_clock_mhz: Megahertz | None = Field(default=None, ge=1)


class MicroBenchmarks(BaseModel):
    """Small measurements that characterise a device before its first subnet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gemm_gflops: Throughput | None = Field(default=None, description="fp32 matrix product, one thread")
    depthwise_gflops: Throughput | None = Field(default=None, description="fp32 depthwise convolution, one thread")
    copy_gb_per_s: Throughput | None = Field(default=None, description="memory copy, read plus write")
    session_overhead_us: Microseconds | None = Field(default=None, description="one run of an almost empty model")


class DeviceProfile(BaseModel):
    """One device. Unknown facts are None: a missing sensor is never an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: PlainText = Field(
        max_length=128, description="what the board calls itself, such as Raspberry Pi 4 Model B Rev 1.4"
    )
    profile: PlainText = Field(
        default="unknown", max_length=64, description="name of the matching file in device_profiles/"
    )
    machine: PlainText = Field(max_length=32, description="processor architecture, such as aarch64")
    operating_system: PlainText = Field(default="unknown", max_length=128)
    clusters: tuple[CpuCluster, ...] = Field(default=(), max_length=16)
    cores: int = Field(ge=1, le=4096)
    vector_extensions: tuple[ShortText, ...] = Field(default=(), max_length=32)
    memory_mb: Megabytes | None = None
    accelerator: PlainText | None = Field(default=None, max_length=128)
    micro_benchmarks: MicroBenchmarks = MicroBenchmarks()
