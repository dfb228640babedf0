"""Find the command that installs a runtime into this Python, or the reason why no wheel fits."""

from __future__ import annotations

import re
import struct

from fleetnas.device_profiles.catalogue import load_catalogue
from fleetnas.fleet_protocol.installing import install_extra, packages_of, pip_command

#: The oldest C library that the runtimes' wheels load on: onnxruntime's and ai-edge-litert's, and tflite-runtime's.
_GLIBC, _GLIBC_32_BIT = (2, 27), (2, 34)
#: Data file of a known device.
_ARM32 = "generic_arm32"
#: In a profile's command: the packages of an extra of fleetnas.
_PACKAGES = re.compile(r"\{(\w+)\}")


def interpreter_bits() -> int:
    """Return the word size of this Python, 32 or 64: a 32-bit system on a 64-bit kernel calls its machine aarch64."""
    return 8 * struct.calcsize("P")


def install_commands(profile: str, bits: int) -> str:
    """Return the commands that install a runtime into this environment, by device profile and word size."""
    known = load_catalogue().devices.get(_ARM32 if bits == 32 else profile)
    commands = list(known.install) if known is not None else []
    if bits == 64:
        # This is an environment already. (A 32-bit one may not see the system's packages.)
        commands = [text for text in commands if "pip " in text or ("venv" not in text and "/opt/fleetnas" not in text)]
        commands = [re.sub(r"^(/opt/fleetnas/bin/)?pip ", pip_command(), text) for text in commands]
    if not commands:
        return install_extra("agent")
    return "; ".join(_PACKAGES.sub(lambda found: packages_of(found[1]), command) for command in commands)


def no_wheel_reason(library: str, version: str, bits: int, python: tuple[int, int]) -> str:
    """Return why a system with this C library and Python has no wheel of a runtime; empty if it has one."""
    if bits == 32 and python >= (3, 12):
        return "tflite-runtime has 32-bit wheels for Python up to 3.11"
    if library != "glibc":
        return "wheels of the runtimes are for glibc, and this system has another C library"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    needed = _GLIBC_32_BIT if bits == 32 else _GLIBC
    if numbers < needed:
        return f"wheels of the runtimes need glibc {needed[0]}.{needed[1]}, and this system has {version}"
    return ""
