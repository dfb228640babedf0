"""What a release holds: one import name, every data file, and programs that start from the wheel of the sdist."""

from __future__ import annotations

import re
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from rigs import distributions, waiting
from rigs.distributions import Distributions

from fleetnas.coordinator.app.own_wheel import own_wheel

#: One worker builds the distributions and installs them.
pytestmark = pytest.mark.xdist_group("packaging")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return distributions.build(tmp_path_factory.mktemp("distributions"))


@pytest.fixture(scope="module")
def python(built: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with the sdist installed, and this one's packages as dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    waiting.run([sys.executable, "-m", "venv", "--without-pip", str(environment)]).check_returncode()
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)}))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    install = [*pip, "--no-deps", "--no-index", "--no-build-isolation", str(built.wheel)]
    waiting.run(install).check_returncode()
    (packages / "dependencies.pth").write_text("\n".join(_dependencies(environment)) + "\n")
    return environment / "bin" / "python"


def _dependencies(environment: Path) -> list[str]:
    """A folder of links to this interpreter's packages, without the project's own editable install."""
    folder = environment / "dependencies"
    folder.mkdir()
    for packages in (path for path in sys.path if path.endswith("site-packages")):
        for entry in Path(packages).iterdir():
            if "fleetnas" not in entry.name and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return [str(folder)]


def test_the_wheel_holds_every_file_under_one_name(built: Distributions) -> None:
    held = distributions.wheel_files(built.wheel)
    assert {name.partition("/")[0] for name in held} == {"fleetnas"}
    assert held == distributions.expected_files()
    suffixes = {Path(name).suffix for name in held}
    assert suffixes >= {".py", ".typed", ".json", ".safetensors", ".csv", ".j2"}
    assert any("/migrations/versions/" in name for name in held)


def test_the_sdist_holds_every_file_of_the_wheel(built: Distributions) -> None:
    held = distributions.sdist_files(built.sdist)
    assert held >= distributions.expected_files() | {"pyproject.toml", "README.md", "LICENSE"}


def test_a_clone_has_the_links_to_the_packages(tmp_path: Path) -> None:
    clone = ["git", "clone", "--quiet", "--depth", "1", distributions.CHECKOUT.as_uri(), str(tmp_path / "clone")]
    if not (distributions.CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    waiting.run(clone).check_returncode()
    for name in distributions.PACKAGES:
        assert (tmp_path / "clone" / "fleetnas" / name).readlink() == Path("..") / name
        assert (tmp_path / "clone" / "fleetnas" / name / "__init__.py").is_file()


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_checkout_gives_devices_what_a_release_would(built: Distributions, tmp_path: Path) -> None:
    own = own_wheel()
    path = tmp_path / own.name
    path.write_bytes(own.content)
    assert own.content == own_wheel().content  # and so has the same hash
    assert re.fullmatch(r"0\.1\.0\+[0-9a-f]{10}", own.version) is not None
    held, released = contents(path), contents(built.wheel)
    assert {name: text for name, text in held.items() if ".dist-info/" not in name} == {
        name: text for name, text in released.items() if ".dist-info/" not in name
    }
    folder, release = (f"fleetnas-{version}.dist-info" for version in (own.version, "0.1.0"))
    assert held[f"{folder}/entry_points.txt"] == released[f"{release}/entry_points.txt"]
    assert f"\nVersion: {own.version}\n".encode() in held[f"{folder}/METADATA"]
    assert {name.partition("/")[2] for name in held if folder in name} == {
        name.partition("/")[2] for name in released if release in name
    }


def test_what_a_build_left_in_the_checkout_is_no_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleetnas.egg-info").mkdir()
    (tmp_path / "fleetnas.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: fleetnas\nVersion: 0.0.1\n")
    found = own_wheel().version
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("fleetnas") == "0.0.1"
    assert own_wheel().version == found


def test_an_installed_wheel_is_packed_again_as_it_was(built: Distributions, python: Path, tmp_path: Path) -> None:
    program = (
        "from fleetnas.coordinator.app.own_wheel import own_wheel, own_version; wheel = own_wheel(); "
        "assert wheel.version == own_version() == '0.1.0'; open(wheel.name, 'wb').write(wheel.content)"
    )
    run = waiting.run([str(python), "-c", program], cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (again,) = tmp_path.glob("*.whl")
    assert again.name == built.wheel.name
    held, released = contents(again), contents(built.wheel)
    assert set(held) == set(released)
    of_the_packer = ("/RECORD", "/WHEEL")
    assert {name: text for name, text in held.items() if not name.endswith(of_the_packer)} == {
        name: text for name, text in released.items() if not name.endswith(of_the_packer)
    }
    environment = tmp_path / "environment"
    waiting.run([sys.executable, "-m", "venv", "--without-pip", str(environment)]).check_returncode()
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    waiting.run([*pip, "--no-deps", "--no-index", str(again)]).check_returncode()  # pip checks RECORD's hashes
    assert (environment / "bin" / "fleetnas-agent").is_file()


@pytest.mark.parametrize("program", ["fleetnas", "fleetnas-agent"])
def test_the_installed_programs_start(python: Path, program: str, tmp_path: Path) -> None:
    run = waiting.run([str(python.parent / program), "--version"], cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "0.1.0" in run.stdout


def test_the_installed_package_finds_its_data(python: Path, tmp_path: Path) -> None:
    program = (
        "import fleetnas, pathlib; folder = pathlib.Path(fleetnas.__file__).parent; "
        f"assert folder.is_relative_to({str(python.parent.parent)!r}), folder; "
        "assert fleetnas.export_digits('digits.supernet').accuracy_predictor() is not None"
    )
    run = waiting.run([str(python), "-c", program], cwd=tmp_path)
    assert run.returncode == 0, run.stderr
