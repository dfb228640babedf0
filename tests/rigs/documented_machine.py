"""A machine that is thrown away afterwards: namespaces of its own, and an overlay of the whole file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from rigs.documented_commands import ROOT
from rigs.documented_world import call

#: Names and addresses of the documents; all of them are this machine here.
HOSTS = "localhost HOST fleet.example broker.example db db.example pi4 pi5"
ADDRESS = "192.168.1.10"
#: Where the prepared folder is seen inside.
GIVEN = Path("/srv/given")
#: Programs of Debian that the pages take as given.
_PROGRAMS = ("mosquitto", "mosquitto_passwd", "openssl", "runuser", "psql")


def can_enter() -> str | None:
    """Return why such namespaces cannot be made here, or None."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, for namespaces and an overlay"
    script = (
        "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
        "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    )
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", f"{script} && ip link set lo up"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return None if tried.returncode == 0 else f"no overlay in a namespace: {tried.stderr.strip()[-200:]}"


def _empty(root: Path, place: str, base: Path) -> None:
    """Make a folder of the overlay empty, except for the checkout and the interpreter that may lie in it."""
    held = {folder for folder in map(Path, (ROOT, sys.prefix, sys.base_prefix)) if Path("/", place) in folder.parents}
    kept = sorted(folder for folder in held if not held & set(folder.parents))
    for number, folder in enumerate(kept):
        aside = base / f"aside-{place.replace('/', '-')}-{number}"
        aside.mkdir()
        call("mount", "--bind", root / folder.relative_to("/"), aside)
    call("mount", "-t", "tmpfs", "tmpfs", root / place)
    for number, folder in enumerate(kept):
        (root / folder.relative_to("/")).mkdir(parents=True)
        call("mount", "--move", base / f"aside-{place.replace('/', '-')}-{number}", root / folder.relative_to("/"))


def enter(program: str, folder: str, *step: str) -> None:
    """Change the root to an overlay of it, give the machine its names, and go on there with `program` and `step`."""
    base = Path("/mnt")
    call("mount", "-t", "tmpfs", "tmpfs", base)
    for name in ("up", "work", "root"):
        (base / name).mkdir()
    root = base / "root"
    call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={base}/up,workdir={base}/work", root)
    call("mount", "-t", "proc", "proc", root / "proc")
    call("mount", "--rbind", "/dev", root / "dev")
    call("mount", "--rbind", "/sys", root / "sys")
    given = root / GIVEN.relative_to("/")
    given.mkdir(parents=True)
    call("mount", "--bind", folder, given)
    for place in ("tmp", "run", "var/tmp"):
        _empty(root, place, base)
    call("ip", "link", "set", "lo", "up")
    call("ip", "link", "add", "cable", "type", "veth", "peer", "name", "other-end")
    call("ip", "address", "add", f"{ADDRESS}/24", "dev", "cable")
    for end in ("cable", "other-end"):
        call("ip", "link", "set", end, "up")
    (root / "etc" / "hosts").write_text(f"127.0.0.1 {HOSTS}\n::1 localhost\n")
    os.chroot(root)
    os.chdir("/")
    os.execv(sys.executable, [sys.executable, program, *step])
