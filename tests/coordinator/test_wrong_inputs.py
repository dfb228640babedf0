"""Wrong inputs: what is typed, the exit code, and the one line that is printed, with the cause and the next step."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rigs import waiting
from rigs.command_line import fleetnas
from rigs.untrained_supernet import write_untrained

from fleetnas.agent.cli.main import main as agent_main
from fleetnas.coordinator.store.empty_store import is_empty_file

#: A whole search but for what a case adds; nothing answers there, and none of the cases gets that far.
_SEARCH = "search --broker 127.0.0.1 --targets 20 --supernet {tmp}/digits.supernet"


@dataclass(frozen=True)
class Wrong:
    """One wrong input; `{tmp}` is a folder with `digits.supernet` and `notes.txt`, `{store}` that of a finished run."""

    words: str
    line: str
    code: int = 2


INPUTS = (
    # Names
    Wrong("serch", "`fleetnas` has no command 'serch'; did you mean search? `fleetnas --help` lists all"),
    Wrong(
        "accuracy fti",
        "`fleetnas accuracy` has no command 'fti'; did you mean fit? `fleetnas accuracy --help` lists all",
    ),
    Wrong("qqq", "`fleetnas` has no command 'qqq'; `fleetnas --help` lists all"),
    Wrong(
        "search --bugdet 40",
        "`fleetnas search` has no option --bugdet; did you mean --budget? `fleetnas search --help` lists all",
    ),
    Wrong("runs --qqq", "`fleetnas runs` has no option --qqq; `fleetnas runs --help` lists all"),
    Wrong(
        "search --strategy botom-up",
        "--strategy 'botom-up' is none of joint, bottom-up, top-down, independent, exhaustive; did you mean bottom-up?"
        "; see `fleetnas search --help`",
    ),
    Wrong(
        "evaluate {tmp}/digits.supernet smallest --precision fp16",
        "--precision 'fp16' is none of fp32, int8; see `fleetnas evaluate --help`",
    ),
    Wrong(
        "export digts",
        "'digts' is neither a supernet known by name nor a file; did you mean digits? give one of digits, "
        "ofa-mbv3-w1.0, ofa-mbv3-w1.2, ofa-proxyless-w1.3, ofa-resnet50, or the path of a checkpoint together with "
        "--space",
    ),
    Wrong(
        "search --offline --targets 20 --latency-table {tmp} --accuracy {tmp}/notes.txt --space ofa-mbv2",
        "no design space is called 'ofa-mbv2'; did you mean ofa-mbv3? there are compofa, compofa-elastic, "
        "digits, mbconv, ofa-mbv3, ofa-proxyless, ofa-resnet50, resnet; a space of another package needs that package "
        "installed here",
    ),
    Wrong(
        "measure {tmp}/digits.supernet largst --local",
        "architecture 'largst' cannot be read (it is no JSON, and no such file exists); did you mean largest? give "
        "JSON with the keys ks, e, d and r, a file of it, `smallest`, `largest` or `random:SEED`",
    ),
    Wrong(
        "export-data -o {tmp}/all.csv --device pj0 --store {store}",
        "no device 'pj0' took part in these runs; did you mean pi0? there are pi0, pi1",
    ),
    Wrong(
        "export-latency run-1 -o {tmp}/table --device pj0 --store {store}",
        "run run-1 has no device pj0; did you mean pi0? it has pi0, pi1",
    ),
    Wrong(
        "export-data -o {tmp}/all.xlsx --format xlsx --store {store}",
        "--format is csv or parquet, not 'xlsx'; give one of the two",
    ),
    # Numbers, times, sizes
    Wrong(
        "search --budget many",
        "--budget 'many' is not a whole number; give a whole number of at least 3; see `fleetnas search --help`",
    ),
    Wrong(
        "search --budget 2",
        "--budget '2' is out of range; give a number of at least 3; see `fleetnas search --help`",
    ),
    Wrong(
        "search --metrics-port 70000",
        "--metrics-port '70000' is out of range; give a number from 0 to 65535; see `fleetnas search --help`",
    ),
    Wrong(
        "broker --port x",
        "--port 'x' is not a whole number; give a whole number from 0 to 65535; see `fleetnas broker --help`",
    ),
    Wrong(f"{_SEARCH} --grace soon", "--grace 'soon' is no time; give such as 90s, 500ms, 2h or 1h30m"),
    Wrong(f"{_SEARCH} --timeout tomorrow", "--timeout 'tomorrow' is no time; give such as 90s, 500ms, 2h or 1h30m"),
    Wrong(f"{_SEARCH} --join 10ms", "--join '10ms' is too short; give at least 1s"),
    Wrong(
        f"{_SEARCH} --max-macs 300MB",
        "--max-macs '300MB' is no quantity above 0; give a number with one of the units k, M, G, or without a unit",
    ),
    Wrong(
        f"{_SEARCH} --max-parameters 100",
        "no subnet of digits keeps the bounds: at most 100 parameters, and the smallest subnet has 204,010; raise the "
        "bounds to that at least",
    ),
    Wrong(
        "search --targets soon",
        "targets 'soon' cannot be used: 'soon' is not a number; give milliseconds such as 20,30,40 or auto:4, or "
        "p95:33, fps:30, energy:5mJ, accuracy:75",
    ),
    Wrong(
        "search --targets auto:0",
        "targets 'auto:0' cannot be used: auto: takes a number from 1 to 64, once; give milliseconds such as 20,30,40 "
        "or auto:4, or p95:33, fps:30, energy:5mJ, accuracy:75",
    ),
    Wrong(
        "measure {tmp}/digits.supernet smallest --local --target 20,30",
        "--target 20,30 is not one latency; give milliseconds such as 20ms",
    ),
    Wrong(
        "measure {tmp}/digits.supernet smallest --local --setting onnxruntime,threads=0",
        "setting 'onnxruntime,threads=0': threads: it must be at least 1; an example is "
        "onnxruntime,threads=2,graph_optimisation=basic,affinity=2-3",
    ),
    Wrong(
        "predictor evaluate {tmp}/notes.txt --draws 0",
        "--draws '0' is out of range; give a number of at least 1; see `fleetnas predictor evaluate --help`",
    ),
    # What is missing, and what is too much
    Wrong(
        "runs rename",
        "`fleetnas runs rename` needs RUN (A run's id or name, the beginning of one, or `latest`, as `fleetnas runs` "
        "lists them); see `fleetnas runs rename --help`",
    ),
    Wrong(
        "enroll pi4",
        "`fleetnas enroll` needs --authority DIR (The folder that `fleetnas broker init` made); see `fleetnas enroll "
        "--help`",
    ),
    Wrong(
        "portfolio run-1 --store {store}",
        "`fleetnas portfolio` needs --models K (Subnets at most); see `fleetnas portfolio --help`",
    ),
    Wrong("search --budget", "--budget needs a value behind it; --help shows how the command is used"),
    Wrong(
        "demo --json=1", "--json is a switch and takes no value; give it alone; --help shows how the command is used"
    ),
    Wrong("runs yesterday", "`fleetnas runs` has no command 'yesterday'; `fleetnas runs --help` lists all"),
    Wrong(
        "results latest later", "`fleetnas results` has no use for 'later'; leave it out; see `fleetnas results --help`"
    ),
    Wrong(
        "search --offline --targets 20",
        "an offline search needs --targets in milliseconds, --latency-table and --accuracy; give all three",
    ),
    Wrong(f"{_SEARCH} --worst-case", "these options are about --models K, which is not given; leave out --worst-case"),
    Wrong(f"{_SEARCH} --dry-run --resume", "--dry-run is about a new search; leave out --resume"),
    Wrong("watch --fleet lab", "without --broker or --credentials a store is watched; leave out --fleet"),
    Wrong("search --local --broker 127.0.0.1 --targets 20", "--local has neither broker nor fleet; leave out --broker"),
    Wrong(
        "train",
        "give the folder of training images, DATA/train; a training that was interrupted goes on with --resume "
        "--out DIR",
    ),
    Wrong(
        "train {tmp} --val {tmp} --out {tmp}/run --epochs 0",
        "--epochs: it must be at least 1, found 0; correct it",
    ),
    # Files and addresses
    Wrong(
        "search --broker 127.0.0.1:99999 --targets 20",
        "broker '127.0.0.1:99999' is not HOST:PORT with a port from 1 to 65535, such as 192.168.1.10:1883 or "
        "[fd00::10]:1883, or mqtts://HOST[:PORT] for TLS",
    ),
    Wrong(
        "search --broker 127.0.0.1 --targets 20 --supernet {tmp}/none.supernet",
        "{tmp}/none.supernet cannot be read as a supernet bundle: No such file or directory; check the path, or make "
        "one with `fleetnas export`",
        1,
    ),
    Wrong(
        "search --broker 127.0.0.1 --targets 20 --supernet {tmp}/notes.txt",
        "{tmp}/notes.txt is not a usable supernet bundle: it is a file of another kind, or its header claims too much "
        "(8391086132249784174 bytes); export or fetch it again",
        1,
    ),
    Wrong(
        f"{_SEARCH} --baseline {{tmp}}/none.onnx",
        "the model {tmp}/none.onnx cannot be read: No such file or directory; check its path",
    ),
    Wrong("inspect {tmp}/none.pth", "there is no checkpoint at {tmp}/none.pth; check the path", 1),
    Wrong(
        "finetune smallest --bundle {tmp}/digits.supernet -o {tmp}/o.txt",
        "--output {tmp}/o.txt would hold the content of a .supernet file; give it a name with this suffix, such as "
        "o.supernet",
    ),
    Wrong(
        "enroll pi4 --authority {tmp}/none",
        "{tmp}/none is not a fleet's authority (authority.json cannot be read: No such file or directory); give the "
        "folder that `fleetnas broker init` made",
    ),
    Wrong(
        "results run-1 --store {tmp}/no.sqlite",
        "there is no store {tmp}/no.sqlite; check --store, or leave it out for the one in your data folder",
    ),
    Wrong(
        "runs --store {tmp}/notes.txt",
        "the store {tmp}/notes.txt cannot be used: file is not a database; it is no fleetnas store; give "
        "another --store",
        1,
    ),
    Wrong(
        "runs --store mysql://me:secret@host/runs",
        "a store is SQLite or PostgreSQL, not mysql; give a file, or a URL such as postgresql+psycopg://user@host/database",
    ),
    Wrong(
        "predictor evaluate {tmp}/none.csv",
        "there is no file {tmp}/none.csv; give an .npz, .json or .csv of architectures and latencies",
    ),
)
AGENT_INPUTS = (
    Wrong("rum", "`fleetnas-agent` has no command 'rum'; did you mean run?; see `fleetnas-agent --help`"),
    Wrong(
        "run --brker pi4",
        "`fleetnas-agent run` has no option --brker; did you mean --broker? `fleetnas-agent run --help` lists all",
    ),
    Wrong(
        "run --threads x",
        "--threads: 'x' is not a whole number of at least 1; see `fleetnas-agent run --help`",
    ),
    Wrong(
        "run --precision fp8",
        "--precision 'fp8' is none of fp32, int8; see `fleetnas-agent run --help`",
    ),
    Wrong("bench", "`fleetnas-agent bench` needs MODEL; see `fleetnas-agent bench --help`"),
    Wrong(
        "status now", "`fleetnas-agent status` has no use for 'now'; leave it out; see `fleetnas-agent status --help`"
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("inputs")
    write_untrained(made / "digits.supernet")
    (made / "notes.txt").write_text("not a store " * 100)
    return made


def test_there_are_forty() -> None:
    assert len({each.words for each in INPUTS}) >= 40


@pytest.mark.parametrize("wrong", INPUTS, ids=lambda each: each.words)
def test_a_wrong_input_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    folder: Path,
    finished_run: Path,
    wrong: Wrong,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    places = {"tmp": str(folder), "store": str(finished_run)}
    code, out, err = fleetnas(capsys, *(word.format(**places) for word in wrong.words.split()))
    assert (out, err) == ("", f"error: {wrong.line.format(**places)}\n")
    assert code == wrong.code
    assert is_empty_file(str(data / "fleetnas" / "runs.sqlite"))  # nothing was begun
    assert [path for path in tmp_path.rglob("*") if path.is_file() and data not in path.parents] == []


@pytest.mark.parametrize("wrong", AGENT_INPUTS, ids=lambda each: each.words)
def test_a_wrong_input_of_the_agent_is_answered_in_one_line(capsys: pytest.CaptureFixture[str], wrong: Wrong) -> None:
    with pytest.raises(SystemExit) as ended:
        agent_main(wrong.words.split())
    assert capsys.readouterr().err == f"error: {wrong.line}\n"
    assert ended.value.code == wrong.code


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        ("coordinator.cli", INPUTS[0]),
        ("coordinator.cli", INPUTS[3]),
        ("coordinator.cli", next(each for each in INPUTS if each.code == 1 and "inspect" in each.words)),
        ("agent.cli.main", AGENT_INPUTS[1]),
    ],
)
def test_the_programs_themselves_answer_so(tmp_path: Path, program: str, wrong: Wrong) -> None:
    words = [word.format(tmp=tmp_path) for word in wrong.words.split()]
    run = waiting.run([sys.executable, "-c", f"from fleetnas.{program} import main; main()", *words], cwd=tmp_path)
    assert (run.returncode, run.stdout) == (wrong.code, "")
    assert run.stderr == f"error: {wrong.line.format(tmp=tmp_path)}\n"
