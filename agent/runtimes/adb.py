"""Run commands on an Android phone with the `adb` program."""

from __future__ import annotations

import os
import shlex
import subprocess

from fleetnas.agent.host.process_lifetime import tied_to_this_process
from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.child_process import child_environment
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError

#: The phone to use, as `adb devices` calls it. One agent drives one phone.
SERIAL_VARIABLE = "FLEETNAS_ADB_SERIAL"
COMMAND_TIMEOUT_S = 60.0


class Adb:
    """Runs commands with the `adb` program on one phone."""

    def __init__(self, serial: str | None = None) -> None:
        chosen = serial if serial is not None else os.environ.get(SERIAL_VARIABLE, "")
        self._prefix = ["adb", *(("-s", chosen) if chosen else ())]

    def run(self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run an adb command and return its standard output.

        Raises `RuntimeUnavailableError` with its output and the next action if it fails. The standard error of a
        command that succeeds, such as that a server was started, is ignored.
        """
        try:
            done = subprocess.run(
                [*self._prefix, *words],
                env=child_environment(),
                stdin=subprocess.DEVNULL,  # our own standard input carries the agent's orders
                preexec_fn=tied_to_this_process(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise RuntimeUnavailableError(
                "adb is not installed; run: sudo apt install adb, or install Android's platform tools"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeUnavailableError(
                f"the phone did not answer `adb {words[0]}` within {timeout_s:g} s; check its cable and screen"
            ) from error
        if done.returncode != 0:
            output = " ".join(f"{done.stdout}\n{done.stderr}".split())[-300:]
            raise RuntimeUnavailableError(f"`adb {' '.join(words)[:100]}` failed: {output}{_advice(output)}")
        return done.stdout

    def shell(self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command on the phone and return its standard output."""
        return self.run("shell", shlex.join(words), timeout_s=timeout_s)

    def property(self, name: str) -> str:
        """Return a system property of the phone, in one line."""
        return plain(" ".join(self.shell("getprop", name).split()))


def _advice(output: str) -> str:
    if "unauthorized" in output:
        return "; unlock the phone and allow USB debugging for this computer"
    if "more than one device" in output:
        return f"; several phones are attached: set {SERIAL_VARIABLE} to one of `adb devices`, one agent each"
    if "no devices" in output or "not found" in output:
        return "; attach the phone, switch on USB debugging, and check `adb devices`"
    return ""
