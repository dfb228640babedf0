"""The boards that are emulated: what they look like from inside, and how their guide installs the agent on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_CORES = 4


@dataclass(frozen=True, slots=True)
class Board:
    """One kind of board under one Debian architecture."""

    architecture: str
    machine: str
    #: Name of the emulator's program and of its registration: `qemu-NAME`.
    emulator: str
    #: What `QEMU_CPU` must be for the processor of this board.
    processor: str
    model: str
    cpuinfo: str
    #: Debian packages that the guide installs, beside `python3`.
    packages: tuple[str, ...]
    #: Options of `python3 -m venv` in the guide.
    venv_options: tuple[str, ...]
    #: The distribution's extras in the guide.
    extras: str
    #: Settings that an agent offers here, one campaign for each.
    settings: tuple[str, ...]

    def write_looks(self, folder: Path) -> None:
        """Files to lay over `/proc`, the device tree and the thermal zones.

        Not only looks: onnxruntime and LiteRT read `/proc/cpuinfo` when they are loaded, and end in a segmentation
        fault where it describes another architecture than theirs.
        """
        zone = folder / "thermal" / "thermal_zone0"
        zone.mkdir(parents=True, exist_ok=True)
        cores = "\n".join(f"processor\t: {number}\n{self.cpuinfo}" for number in range(_CORES))
        (folder / "cpuinfo").write_text(f"{cores}\nHardware\t: BCM2835\nModel\t\t: {self.model}\n")
        (folder / "model").write_text(f"{self.model}\0")
        (zone / "type").write_text("cpu-thermal\n")
        (zone / "temp").write_text("48312\n")


def _cpuinfo(architecture: int, features: str, part: str) -> str:
    return (
        f"BogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: {architecture}\n"
        f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
    )


BOARDS = {
    "arm64": Board(
        architecture="arm64",
        machine="aarch64",
        emulator="aarch64",
        processor="cortex-a72",
        model="Raspberry Pi 4 Model B Rev 1.4",
        cpuinfo=_cpuinfo(8, "fp asimd evtstrm crc32 cpuid", "0xd08"),
        packages=("python3-venv",),
        venv_options=(),
        extras="agent,litert",
        settings=("onnxruntime,threads=1", "litert,threads=1"),
    ),
    "armhf": Board(
        architecture="armhf",
        machine="armv7l",
        emulator="arm",
        processor="cortex-a7",
        model="Raspberry Pi 2 Model B Rev 1.1",
        cpuinfo=_cpuinfo(
            7, "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm", "0xc07"
        ),
        packages=("python3-venv", "python3-numpy", "python3-psutil"),
        venv_options=("--system-site-packages",),
        extras="arm32",
        settings=("litert,threads=1",),
    ),
}
