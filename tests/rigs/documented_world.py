"""What pages take as given beside fleetnas: a database, a broker of a company, a phone, an accelerator, files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rigs import runtime_stand_ins, waiting

#: A host with a certificate of its own, in `Scene.folder`; `SSL_CERT_FILE` names it as the authority to trust.
SITE = ".site"
PASSWORD = "correct-horse"


def call(*words: object) -> None:
    """Run a program of this machine's; what it prints goes to standard error."""
    subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)


def write_files(folder: Path) -> None:
    """Write checkpoints, model files, tables of latencies and a site's certificate, as users bring them."""
    _write_checkpoints(folder)
    _write_models(folder)
    _write_table(folder)
    site = folder / SITE
    site.mkdir()
    names = "subjectAltName=DNS:fleet.example,DNS:broker.example"
    call("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 365,
         "-subj", "/CN=example", "-addext", names, "-keyout", site / "key.pem", "-out", site / "ca.pem")  # fmt: skip
    shutil.copy(site / "ca.pem", folder)
    (folder / "secret").write_text(f"{PASSWORD}\n")
    (folder / "secret").chmod(0o600)
    for user in ("pi4", "coordinator"):
        create = [] if (site / "passwords").exists() else ["-c"]
        call("mosquitto_passwd", "-b", *create, site / "passwords", user, PASSWORD)
    (site / "mosquitto.conf").write_text(
        f"listener 8883\ncertfile {site}/ca.pem\nkeyfile {site}/key.pem\n"
        f"allow_anonymous false\npassword_file {site}/passwords\n"
    )


def _write_checkpoints(folder: Path) -> None:
    import torch

    from fleetnas.supernet_export.spaces.registry import make_space
    from rigs.striped_images import CLASSES
    from rigs.supernets import random_state_dict

    own = {"width": 0.5, "expands": [2, 4], "depths": [1, 2, 3], "classes": len(CLASSES)}
    for name, options in (("my_checkpoint", {}), ("parts", own)):
        state = random_state_dict(make_space("ofa-mbv3", options))
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, folder / f"{name}.pth")


def _write_models(folder: Path) -> None:
    """Model files for 224 x 224 pixels: small ONNX classifiers, and a MobileNetV3 of random weights for LiteRT."""
    from fleetnas.fleet_protocol.messages import RuntimeSetting
    from fleetnas.supernet_export.model_file import build_model
    from fleetnas.supernet_export.spaces.registry import make_space
    from rigs.model_files import onnx_model
    from rigs.striped_images import CLASSES
    from rigs.supernets import random_bundle

    for name in ("model", "mobilenet", "resnet", "20ms"):
        (folder / f"{name}.onnx").write_bytes(onnx_model(224, classes=len(CLASSES)))
    space = make_space("ofa-mbv3", {"width": 0.5, "classes": len(CLASSES), "resolutions": [224]})
    bundle = random_bundle(folder / ".mobilenet.supernet", space)
    smallest = space.decode(space.smallest())[0]
    (folder / "mobilenet.tflite").write_bytes(build_model(bundle, smallest, None, RuntimeSetting(runtime="litert")))


def _write_table(folder: Path) -> None:
    """The table and the accuracy predictor that OFA's authors published, from the reference data."""
    for name in ("note10_lut", "acc_predictor.pth"):
        call("cp", "-rL", Path(os.environ["FLEETNAS_DATA"]) / "ofa_mbv3" / name, folder / name)


def attach_phone_and_accelerator(folder: Path, binaries: Path) -> dict[str, str]:
    """Install `adb` with one phone, and the accelerator's program in /opt/npu; returns their environment."""
    phone = folder / ".phone"
    tool = phone / "data/local/tmp/benchmark_model"
    tool.parent.mkdir(parents=True, exist_ok=True)
    tool.touch()
    shutil.copy(runtime_stand_ins.STAND_INS / "adb", binaries / "adb")
    (folder / "benchmark_model").touch()
    npu = Path("/opt/npu")
    npu.mkdir(parents=True)
    (npu / "bench.py").write_text(runtime_stand_ins.PROGRAM.replace('"provider": "cpu"', '"provider": "npu-7"'))
    (npu / "bench").write_text(f'#!/bin/sh\nexec {sys.executable} /opt/npu/bench.py "$1" 1 "$3"\n')
    (npu / "bench").chmod(0o755)
    return {"PHONE": str(phone)}


def start_postgresql() -> subprocess.Popen[bytes]:
    """Start a database server on localhost, with the users and the database of the pages."""
    data = "/var/tmp/database"
    as_owner = ["runuser", "-u", "postgres", "--"]
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1].parent
    call(*as_owner, programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8",
         "--locale=C")  # fmt: skip
    serve = [*as_owner, str(programs / "postgres"), "-D", data, "-h", "127.0.0.1", "-k", "/var/tmp"]
    process = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1"]
    waiting.until(lambda: subprocess.run(ready, check=False).returncode == 0, process, what="PostgreSQL answers")
    for statement in (
        "CREATE ROLE fleetnas LOGIN SUPERUSER",
        "CREATE ROLE fleet LOGIN SUPERUSER",
        "CREATE DATABASE fleetnas OWNER fleetnas",
    ):
        call(programs / "psql", "-q", "-h", "127.0.0.1", "-U", "postgres", "-c", statement)
    return process


def architecture_of(results: Path) -> str:
    """The architecture of one winner, as JSON."""
    return json.dumps(json.loads(next(results.glob("*/*/*ms.json")).read_text())["architecture"])
