"""`make install` on a small project, its packages served from a folder or a loopback index."""

import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from cli import install as installer
from cli.install import Plan, install
from cli.machine import check_disk, find_python, nvidia_gpus, visible_gpus
from cli.pip_run import InstallError, Progress

ROOT = Path(__file__).parents[2]
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    metadata = {"METADATA": ["Metadata-Version: 2.1", "Name: small", "Version: 1.0"], "RECORD": [],
                "WHEEL": ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"]}
    with zipfile.ZipFile(folder + "/small-1.0-py3-none-any.whl", "w") as wheel:
        for name, lines in metadata.items():
            wheel.writestr("small-1.0.dist-info/" + name, "\\n".join(lines))
    return "small-1.0-py3-none-any.whl"
"""


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """A package whose one module says its version."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"version = {version!r}\n")
        wheel.writestr(f"{name}/data.txt", "data\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(
            f"{info}/RECORD", f"{name}/__init__.py,,\n{name}/data.txt,,\n{info}/METADATA,,\n{info}/WHEEL,,\n"
        )
    return path


class Project:
    """A checkout with locks of its own, and the folder of wheels that its pip looks into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheels"
        self.locks = root / "configs" / "locks"
        self.wheels.mkdir()
        self.locks.mkdir(parents=True)
        (root / "backend.py").write_text(BACKEND)
        (root / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "small"\nversion = "1.0"\n'
        )
        for name, version in (("alpha", "1.0"), ("beta", "1.0"), ("beta", "2.0"), ("gamma", "1.0+cpu")):
            write_wheel(self.wheels, name, version)
        self.lock("cpu", "alpha==1.0", "gamma==1.0+cpu")
        self.lock("dev", "beta==1.0")
        keep = ("PATH", "HOME", "TMPDIR", "LANG")
        self.variables = {name: os.environ[name] for name in keep if name in os.environ}
        self.variables |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }

    def lock(self, name: str, *lines: str) -> None:
        (self.locks / f"{name}.txt").write_text("\n".join(["# a lock", *lines, ""]))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "cli.install", "--extra", "cpu", "--root", str(self.root)]

    def install(self, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.variables, **variables}
        return subprocess.run(
            self.command(),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def site(self) -> Path:
        [site] = (self.root / ".venv").glob("lib/python*/site-packages")
        return site

    def versions(self) -> str:
        """What the interpreter of .venv finds."""
        code = "import alpha, beta, gamma; print(alpha.version, beta.version, gamma.version)"
        python = self.root / ".venv" / "bin" / "python"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been installed; every test leaves it so."""
    project = Project(tmp_path_factory.mktemp("project"))
    done = project.install()
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def project(installed: Project) -> Iterator[Project]:
    yield installed
    installed.lock("cpu", "alpha==1.0", "gamma==1.0+cpu")
    installed.lock("dev", "beta==1.0")
    assert installed.install().returncode == 0


def words(text: str) -> list[str]:
    """Lines of output without their seconds."""
    return [re.sub(r"^install +\d+ s  ", "", line) for line in text.splitlines()]


def test_a_second_run_finds_nothing_to_do(project: Project) -> None:
    again = project.install()
    assert (again.returncode, words(again.stdout)) == (0, [".venv is up to date (cpu)"])
    assert project.versions() == "1.0 1.0 1.0+cpu"


def test_what_an_unfinished_install_left_broken_is_installed_anew(project: Project) -> None:
    (project.root / ".venv" / "installed.json").unlink()
    (project.site() / "alpha" / "__init__.py").write_text("version = 'half'\n")
    (project.site() / "alpha-1.0.dist-info" / "RECORD").unlink()
    (project.site() / "beta" / "data.txt").unlink()
    (project.site() / "~eta").mkdir()
    assert words(project.install().stdout) == [
        "checking what an earlier install left",
        "installing gamma==1.0+cpu",
        "installing packages",
        "installing the project",
        ".venv is ready (cpu, 3 packages)",
    ]
    assert project.versions() == "1.0 1.0 1.0+cpu"
    assert (project.site() / "beta" / "data.txt").read_text() == "data\n"
    assert not (project.site() / "~eta").exists()


def test_a_venv_without_its_interpreter_is_made_anew(project: Project) -> None:
    for python in (project.root / ".venv" / "bin").glob("python*"):
        python.unlink()
    done = project.install()
    assert words(done.stdout)[0] == "making .venv"
    assert project.versions() == "1.0 1.0 1.0+cpu"


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index over a folder of wheels that can hold back one file."""

    asked = threading.Event()
    released = threading.Event()
    folder = Path()

    def do_GET(self) -> None:
        name = unquote(self.path).strip("/").rpartition("/")[2]
        if name.startswith("beta-") and name.endswith(".whl"):
            self.asked.set()
            self.released.wait(60)
        if self.path.startswith("/nothing"):
            self.send_error(404)
        elif name.endswith(".whl"):
            self.reply((self.folder / name).read_bytes(), "application/zip")
        else:
            files = sorted(self.folder.glob(f"{name}-*.whl"))
            links = "".join(f'<a href="/files/{path.name}">{path.name}</a>' for path in files)
            self.reply(links.encode(), "text/html")

    def reply(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def index(project: Project) -> Iterator[str]:
    """The address of an index that holds back beta until `Index.released`."""
    Index.folder = project.wheels
    Index.asked.clear()
    Index.released.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        Index.released.set()
        server.shutdown()


def test_an_install_killed_during_pip_is_waited_for_and_the_next_takes_the_changed_lock(
    project: Project, index: str
) -> None:
    project.lock("dev", "beta==2.0")
    project.variables |= {"PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1"}
    online = {
        name: value for name, value in project.variables.items() if name not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")
    }
    first = subprocess.Popen(project.command(), cwd=ROOT, env=online, stdout=subprocess.DEVNULL)
    assert Index.asked.wait(60)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    second = subprocess.Popen(project.command(), cwd=ROOT, env=online, stdout=subprocess.PIPE, text=True)
    assert second.stdout
    assert words(second.stdout.readline()) == ["another install is at work here, waiting for it"]
    Index.released.set()
    assert second.wait(60) == 0
    second.stdout.close()
    assert project.versions() == "1.0 2.0 1.0+cpu"


def test_a_local_version_that_pip_cannot_find_comes_from_the_pytorch_index(
    project: Project, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(project.wheels, "gamma", "2.0+cpu")
    empty = project.root / "empty"
    empty.mkdir()
    for name, value in {**project.variables, "PIP_FIND_LINKS": str(empty)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.removesuffix('/simple')}/nothing")
    monkeypatch.setattr(Index, "folder", project.wheels)
    monkeypatch.setattr(installer, "PYTORCH_CPU_INDEX", index)
    project.lock("cpu", "alpha==1.0", "gamma==2.0+cpu")
    output = io.StringIO()
    install(Plan(project.root, "cpu", ("cpu.txt", "dev.txt")), Progress(output))
    assert project.versions() == "1.0 1.0 2.0+cpu"


def test_a_package_that_no_source_has_is_named(project: Project) -> None:
    project.lock("dev", "beta==3.0")
    failed = project.install()
    assert failed.returncode == 1
    log = project.root / ".run" / "install.log"
    assert failed.stderr == (
        "make install: no source has beta==3.0 for this machine; use Python 3.11 on Linux x86_64 "
        f"(the whole log is in {log})\n"
    )


def test_an_index_that_cannot_be_reached_is_said_to_be(project: Project) -> None:
    project.lock("dev", "beta==3.0")
    del project.variables["PIP_NO_INDEX"]
    failed = project.install(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")
    project.variables["PIP_NO_INDEX"] = "1"
    assert failed.returncode == 1
    assert failed.stderr.startswith("make install: the package index cannot be reached; check the network")


def test_a_small_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(InstallError, match=r"^needs 5 GB of free disk at .*, found 1\.0$"):
        check_disk(tmp_path, "cpu")


def stub(folder: Path, name: str, script: str) -> None:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("gpus", "options", "locks"),
    [
        (0, [], ("cpu.txt", "dev.txt")),
        (2, [], ("gpu.txt", "dev.txt")),
        (2, ["--extra", "cpu"], ("cpu.txt", "dev.txt")),
        (0, ["--extra", "gpu", "--peers"], ("gpu.txt", "dev.txt", "peers.txt")),
    ],
)
def test_gpus_decide_what_is_installed_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, options: list[str], locks: tuple[str, ...]
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(installer, "nvidia_gpus", lambda: gpus)
    monkeypatch.setattr(installer, "install", lambda plan, progress: plans.append(plan))
    assert installer.main(["--root", str(tmp_path), *options]) == 0
    assert plans == [Plan(tmp_path, locks[0].removesuffix(".txt"), locks)]


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", 1),
        ("echo 'GPU 0: NVIDIA H100'; echo '  MIG 1g.10gb Device 0:'; echo 'GPU 1: NVIDIA H100'", 2),
        ("echo 'No devices found'; exit 6", 0),
    ],
)
def test_gpus_are_counted_by_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, gpus: int
) -> None:
    stub(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert nvidia_gpus(tmp_path / "no-driver") == gpus


def test_gpus_are_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus(tmp_path / "gpus") == 0
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:02:00.0").mkdir()
    assert nvidia_gpus(tmp_path / "gpus") == 2


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2", 2)])
def test_gpus_that_are_hidden_do_not_count(tmp_path: Path, visible: str, gpus: int) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": visible}, tmp_path) == gpus


def test_python_3_11_is_taken_before_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, "python3.11", "echo 3.11; echo venv")
    stub(tmp_path, "python3.12", "echo 3.12; echo venv")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 12))
    assert find_python() == str(tmp_path / "python3.11")


def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, "python3.11", "echo 3.11; exit 1")
    stub(tmp_path, "python3", "echo 3.9; echo venv")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setattr(sys, "version_info", (3, 9))
    with pytest.raises(InstallError, match=r"^Python 3\.11 has no venv module; install it \(apt install python3\.11"):
        find_python()


def test_an_old_python_is_told_which_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, "python3", "echo 3.9; echo venv")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setattr(sys, "version_info", (3, 9))
    with pytest.raises(InstallError, match=r"^needs Python 3\.11, 3\.12 or 3\.13, found 3\.9; install python3\.11$"):
        find_python()


def test_the_installer_needs_nothing_but_the_standard_library() -> None:
    probe = "import sys; sys.path[:0] = ['.']; import cli.install; print('site' in sys.modules)"
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert bare.stdout == "False\n"
