"""Every file that a person may write is read as it was meant, whichever editor and system it comes from."""

from __future__ import annotations

import codecs
import datetime
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs.command_line import fleetnas
from rigs.outcome_examples import device_outcome

from fleetnas.agent.cli.configuration import read_configuration
from fleetnas.agent.cli.main import build_parser
from fleetnas.agent.cli.options import broker_address, with_credentials
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.options import json_object
from fleetnas.coordinator.predictors.evaluation.dataset import read_latency_data
from fleetnas.coordinator.search.block_table import table_resolutions
from fleetnas.coordinator.security.authority import Authority
from fleetnas.coordinator.store.measurement_table import measurements_csv, read_measurements
from fleetnas.device_profiles.catalogue import load_catalogue
from fleetnas.device_profiles.text_files import decode_text, read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.fleet_protocol.transports.tls import TlsContext, trust
from fleetnas.supernet_export.evaluation.evaluated_subnets import read_evaluated
from fleetnas.supernet_export.spaces.digits import DigitsSpace

SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "Notepad": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "PowerShell": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    "big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}
SPACE = DigitsSpace()
SUBNETS = SPACE.decode(SPACE.sample(4, np.random.default_rng(0)))

Write = Callable[[str, str], Path]


@pytest.fixture(params=SPELLINGS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes a text under a name, in one of the spellings."""

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(SPELLINGS[request.param](text))
        path.chmod(0o600)
        return path

    return written


def test_the_text_is_the_same(write: Write) -> None:
    path = write("text", "ä\nb\n")
    assert read_text(path) == decode_text(path.read_bytes()) == "ä\nb\n"


def test_another_encoding_is_refused_and_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("ä".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "text")


def test_configuration_of_an_agent(write: Write) -> None:
    path = write("agent.conf", "[agent]\nbroker = fleet.example\nname = bräu\nsettings =\n  litert,threads=1\n")
    found = read_configuration(path, {})
    assert (found["broker"], found["name"], found["settings"]) == ("fleet.example", "bräu", "\nlitert,threads=1")


def test_variables_of_a_windows_file(tmp_path: Path) -> None:
    found = read_configuration(None, {"FLEETNAS_BROKER": "fleet.example\r"})
    assert found["broker"] == "fleet.example"


def test_password_of_a_coordinator(write: Write) -> None:
    path = write("password", "s3cret ü\n")
    found = ConnectionOptions("broker.example", username="me", password_file=path).connection()
    assert found.broker.password == "s3cret ü"


def test_password_of_an_agent(write: Write) -> None:
    path = write("password", "s3cret ü\n")
    arguments = ["run", "--broker", "broker.example", "--username", "me", "--password-file", str(path)]
    parser, _ = build_parser()
    options = parser.parse_args(arguments)
    options = with_credentials(options)
    assert broker_address(options).password == "s3cret ü"


def test_options_in_json(tmp_path: Path) -> None:
    assert json_object("--options", '\ufeff{"width": 1.2}\r\n') == {"width": 1.2}


def test_a_device_profile(write: Write) -> None:
    folder = write("board.json", json.dumps({"title": "Bräu board", "model_pattern": "x"})).parent
    assert load_catalogue(folder).devices["board"].title == "Bräu board"


def test_latencies_in_json(write: Write) -> None:
    content = {
        "space": "digits",
        "architectures": [json.loads(subnet.model_dump_json()) for subnet in SUBNETS],
        "latency_ms": {"phone": [1.0, 2.0, 3.0, 4.0]},
    }
    assert read_latency_data(write("latencies.json", json.dumps(content))).latency_ms["phone"].tolist() == [1, 2, 3, 4]


def test_exported_measurements(write: Write) -> None:
    lines = ["space,space_options,device,runtime,architecture,undisturbed_ms"]
    for subnet in SUBNETS:
        cell = subnet.model_dump_json().replace('"', '""')
        lines.append(f'digits,{{}},phone,litert,"{cell}",2.5')
    found = read_latency_data(write("measurements.csv", "\n".join(lines) + "\n"))
    assert found.latency_ms["phone/litert"].tolist() == [2.5] * 4


def test_measurements_of_a_run(write: Write) -> None:
    device = device_outcome("board-a")
    path = write("measurements.csv", measurements_csv((device,)))
    ((key, rows),) = read_measurements(path).items()
    assert key[0] == "board-a"
    assert rows == list(device.rows)


def test_evaluated_subnets_in_csv(write: Write) -> None:
    subnet = SUBNETS[0]
    lists = ",".join(" ".join(f"{part:g}" for part in getattr(subnet, key)) for key in ("ks", "e", "d"))
    _, top1 = read_evaluated(write("evaluated.csv", f"ks,e,d,r,top1_percent\n{lists},{subnet.r},50\n"), SPACE)
    assert top1.tolist() == [0.5]


def test_evaluated_subnets_in_json_lines(write: Write) -> None:
    line = json.dumps({"architecture": SUBNETS[0].model_dump(mode="json"), "accuracy": 0.5})
    _, top1 = read_evaluated(write("evaluated.jsonl", f"{line}\n{line}\n"), SPACE)
    assert top1.tolist() == [0.5]


def test_a_table_of_blocks(write: Write) -> None:
    path = write("table.yaml", "Conv-input:224x224x3-output:112x112x32:\n  mean: 1.5\n")
    assert table_resolutions(path) == [224]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "authority"
    now = datetime.datetime.now(datetime.timezone.utc)
    made = Authority.create(folder, fleet="lab", hosts=["fleet.example"], now=now)
    made.enroll("pi4", folder / "pi4.credentials", now)
    return folder


def test_credentials_and_signatures(authority: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    credentials = write("pi4.credentials", (authority / "pi4.credentials").read_text())
    file = write("file", "signed\n")
    code, _, said = fleetnas(capsys, "sign", str(file), "--credentials", str(authority / "coordinator.credentials"))
    assert code == 0, said
    write("file.sig", Path(f"{file}.sig").read_text())
    code, _, said = fleetnas(capsys, "verify", str(file), "--credentials", str(credentials))
    assert code == 0, said


def test_certificates_and_keys(authority: Path, write: Write) -> None:
    known = json.loads((authority / "pi4.credentials").read_text())
    address = BrokerAddress(
        "fleet.example",
        8883,
        tls=True,
        ca_file=str(write("ca.pem", known["ca"])),
        certificate_file=str(write("own.pem", known["certificate"])),
        key_file=str(write("own.key", known["key"])),
    )
    assert len(TlsContext.of(address).get_ca_certs()) == 1
    mirrors = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust(mirrors, address.ca_file, None)
    assert len(mirrors.get_ca_certs()) == 1


@pytest.mark.parametrize("name", ["password", "evaluated.csv", "latencies.json", "measurements.csv", "table.yaml"])
def test_a_file_in_another_encoding_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("ks,ä\n".encode("latin-1"))
    readers: dict[str, Callable[[], Any]] = {
        "password": lambda: ConnectionOptions("broker.example", username="me", password_file=path).connection(),
        "evaluated.csv": lambda: read_evaluated(path, SPACE),
        "latencies.json": lambda: read_latency_data(path),
        "measurements.csv": lambda: read_latency_data(path),
        "table.yaml": lambda: table_resolutions(path),
    }
    with pytest.raises(UsageError, match=name) as refused:
        readers[name]()
    assert "\n" not in str(refused.value)
