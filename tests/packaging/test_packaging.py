"""What ``python -m build`` makes, installed as a user would: with a compiler and without.

Run by ``tox run -e dist``; it needs the package index that pip is set up with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TWINS = sorted(path.stem for path in (ROOT / "gnats").glob("_*.pyx"))
PYTHONS = ["3.9", "3.10", "3.11", "3.12", "3.13"]

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no compiler here"
)


def run(*command: str | Path, **environ: str) -> str:
    """What it printed, away from the source tree. It must succeed, within a bound."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**_clean(), **environ},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _clean() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("GNATS_")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an empty environment."""
    run(sys.executable, "-m", "venv", tmp_path / "env")
    return tmp_path / "env" / "bin" / "python"


def installed(python: Path, **environ: str) -> str:
    """What the installed gnats says of itself."""
    program = "import gnats; print(gnats.__version__, gnats.compiled, gnats.Msg.__module__)"
    return run(python, "-c", program, **environ).strip()


def test_the_sdist_has_the_sources_and_nothing_made_of_them(made: dict[str, Path]) -> None:
    with tarfile.open(made["sdist"]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {f"gnats/{twin}.pyx" for twin in TWINS} <= set(names)
    assert {"gnats/py.typed", "setup.py", "tox.ini", "LICENSE", "CHANGELOG.md"} <= set(names)
    assert [name for name in names if name.endswith((".c", ".so", ".pyc"))] == []


@needs_compiler
def test_the_wheel_is_compiled(made: dict[str, Path], python: Path) -> None:
    with zipfile.ZipFile(made["wheel"]) as wheel:
        built = {Path(name).name.partition(".")[0] for name in wheel.namelist() if ".so" in name}
    assert built == set(TWINS)
    run(python, "-m", "pip", "install", made["wheel"])
    assert installed(python).endswith("True gnats._message")
    assert installed(python, GNATS_PURE_PYTHON="1").endswith("False gnats.message")


@needs_compiler
@pytest.mark.parametrize("version", PYTHONS)
def test_every_python_has_its_wheel(made: dict[str, Path], version: str, tmp_path: Path) -> None:
    """Made of the sdist, installed in a fresh environment, and the demonstration runs."""
    interpreter = shutil.which(f"python{version}")
    if interpreter is None:
        pytest.skip(f"there is no python{version} here")
    run(interpreter, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, made["sdist"])
    (wheel,) = tmp_path.glob("*.whl")
    assert f"cp{version.replace('.', '')}" in wheel.name
    run(interpreter, "-m", "venv", tmp_path / "env")
    programs = tmp_path / "env" / "bin"
    run(programs / "pip", "install", "--prefer-binary", f"{wheel}[cli,server]")
    assert "(compiled)" in run(programs / "gnats", "--version")
    assert "PASSED" in run(programs / "gnats", "demo", "--pace", "0.2")


def test_a_compiler_that_is_missing_breaks_nothing(made: dict[str, Path], python: Path) -> None:
    run(python, "-m", "pip", "install", "--no-cache-dir", made["sdist"], CC="no-such-compiler")
    assert installed(python).endswith("False gnats.message")


def test_a_compiler_that_fails_breaks_nothing(made: dict[str, Path], python: Path) -> None:
    run(python, "-m", "pip", "install", "--no-cache-dir", made["sdist"], CC="false")
    assert installed(python).endswith("False gnats.message")


def test_pure_on_request(made: dict[str, Path], python: Path) -> None:
    run(python, "-m", "pip", "install", "--no-cache-dir", made["sdist"], GNATS_PURE_PYTHON="1")
    assert installed(python).endswith("False gnats.message")
