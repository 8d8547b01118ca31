"""`make run` from the outside: what it prints, its exit codes, and that no process outlives it."""

import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
FAKE = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).with_name('fake_serve.py')))}"
DEADLINE_S = 30.0


def wait_for(condition: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    """Returns when `condition` holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


class Checkout:
    """A folder with a config in it, launchers started there, and every process that descends from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LAUNCHER_TEST": self.mark,
            "PYTHONUNBUFFERED": "1",
        }
        for name in ("PROXY_API_KEY", "DEFAULT_MODEL"):
            self.variables.pop(name, None)
        self.arguments = ["--serve", FAKE, "--check", "true", "--memory", "0.01"]
        self.started: subprocess.Popen[str] | None = None
        self.behave("ready")

    def behave(self, behaviour: str) -> None:
        """What the service that stands in for the real one does."""
        document = {"fake": behaviour, "http_options": {"host": "127.0.0.1", "port": self.port}}
        (self.folder / "serve_config.yaml").write_text(json.dumps(document))

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A launcher, or `command`, with its output in out.txt; it is a process group of its own."""
        launcher = [sys.executable, "-m", "cli.launcher", *self.arguments]
        with (self.folder / "out.txt").open("w") as out:
            self.started = subprocess.Popen(
                command or launcher,
                cwd=self.folder,
                env=self.variables,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        return self.started

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A launcher that is expected to end by itself."""
        command = [sys.executable, "-m", "cli.launcher", *self.arguments, *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def wait_ready(self) -> None:
        """Returns when the launcher has printed its last line, and the orphan is there."""
        wait_for(lambda: "curl" in self.output)
        assert psutil.pid_exists(int((self.folder / "orphan.pid").read_text()))

    def scratch(self) -> Path:
        """Where the service was told to keep Ray's files."""
        return Path(json.loads((self.folder / "environment.json").read_text())["RAY_TMPDIR"])

    def processes(self) -> list[psutil.Process]:
        """All live processes that carry this checkout's mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("LAUNCHER_TEST") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path)
    yield made
    if made.started and made.started.poll() is None:
        made.started.terminate()
        made.started.wait(DEADLINE_S)
    for process in made.processes():
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_with_exit_code_0(checkout: Checkout, number: signal.Signals) -> None:
    launcher = checkout.start()
    checkout.wait_ready()
    launcher.send_signal(number)
    assert launcher.wait(DEADLINE_S) == 0
    assert checkout.processes() == []
    assert not checkout.scratch().exists()


def test_a_service_that_does_not_listen_is_killed(checkout: Checkout) -> None:
    checkout.behave("deaf")
    launcher = checkout.start()
    checkout.wait_ready()
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(DEADLINE_S) == 0
    assert checkout.processes() == []


def test_kill_9_of_the_launcher_leaves_nothing(checkout: Checkout) -> None:
    launcher = checkout.start()
    checkout.wait_ready()
    launcher.kill()
    launcher.wait(DEADLINE_S)
    wait_for(lambda: checkout.processes() == [])


def test_kill_9_of_the_supervisor_ends_the_launcher_and_leaves_nothing(checkout: Checkout) -> None:
    launcher = checkout.start()
    checkout.wait_ready()
    [supervisor] = psutil.Process(launcher.pid).children()
    supervisor.kill()
    assert launcher.wait(DEADLINE_S) == 1
    assert "make run: the service ended" in checkout.output
    assert checkout.processes() == []
    assert not checkout.scratch().exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_make_ends_everything(checkout: Checkout, number: signal.Signals) -> None:
    arguments = f"ARGS={shlex.join(checkout.arguments)}"
    binaries = f"BIN={Path(sys.executable).parent}"
    make = checkout.start("make", "-f", str(ROOT / "Makefile"), "run", "INSTALL=@true", binaries, arguments)
    checkout.wait_ready()
    if number == signal.SIGINT:
        os.killpg(make.pid, number)  # a terminal sends Ctrl+C to the whole group
    else:
        make.send_signal(number)
    make.wait(DEADLINE_S)
    wait_for(lambda: checkout.processes() == [])


def test_ctrl_c_before_the_service_is_ready_leaves_nothing(checkout: Checkout) -> None:
    checkout.arguments[1] = f"{sys.executable} -c 'import time; time.sleep(600)'"
    launcher = checkout.start()
    wait_for(lambda: "Ray: waiting" in checkout.output)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(DEADLINE_S) == 0
    assert checkout.processes() == []


@pytest.mark.parametrize(
    "dotenv",
    [
        "",
        "PROXY_API_KEY=abc\n",
        'TP_SIZE=1\nPROXY_API_KEY="abc"\n',
        "PROXY_API_KEY='abc'  # mine\n",
        "export PROXY_API_KEY=abc\r\n",
        " PROXY_API_KEY = abc # mine\n",
        "PROXY_API_KEY=old\nPROXY_API_KEY=abc\n",
        "# PROXY_API_KEY=old\nPROXY_API_KEY='a#b\"c d'\n",
    ],
)
def test_the_printed_curl_line_works_when_pasted(checkout: Checkout, dotenv: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    (checkout.folder / ".env").write_text(dotenv)
    checkout.start()
    checkout.wait_ready()
    [line] = [line for line in checkout.output.splitlines() if "curl -sS" in line]
    answer = subprocess.run(
        ["sh", "-c", line],
        cwd=checkout.folder,
        env=checkout.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == {"known": True, "model": "demo"}


def test_the_key_is_in_no_argument_and_in_no_output(checkout: Checkout) -> None:
    checkout.start()
    checkout.wait_ready()
    key = (checkout.folder / ".env").read_text().strip().removeprefix("PROXY_API_KEY=")
    assert len(key) > 40
    assert key not in checkout.output
    assert not [process for process in checkout.processes() if key in " ".join(process.cmdline())]


def test_ray_starts_for_itself_on_loopback_and_with_a_token(checkout: Checkout) -> None:
    checkout.variables |= {"RAY_ADDRESS": "somebody-elses:6379", "RAY_AUTH_MODE": "disabled"}
    checkout.start()
    checkout.wait_ready()
    variables = json.loads((checkout.folder / "environment.json").read_text())
    expected = {
        "RAY_ADDRESS": "local",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }
    assert {name: variables[name] for name in expected} == expected
    token = Path(variables["RAY_AUTH_TOKEN_PATH"])
    assert token.parent == checkout.folder / ".run"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


def test_the_shells_variables_win_over_the_file(checkout: Checkout) -> None:
    (checkout.folder / ".env").write_text("PROXY_API_KEY=from-file\nTP_SIZE=2\nMAX_MODEL_LEN=512\nHF_TOKEN=\n")
    checkout.variables["TP_SIZE"] = "4"
    checkout.start()
    checkout.wait_ready()
    variables = json.loads((checkout.folder / "environment.json").read_text())
    assert [variables[name] for name in ("PROXY_API_KEY", "TP_SIZE", "MAX_MODEL_LEN")] == [
        "from-file",
        "4",
        "512",
    ]
    assert "HF_TOKEN" not in variables


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_key_in_the_shell_is_none(checkout: Checkout, blank: str) -> None:
    (checkout.folder / ".env").write_text("PROXY_API_KEY=from-file\n")
    checkout.variables["PROXY_API_KEY"] = blank
    checkout.start()
    checkout.wait_ready()
    assert json.loads((checkout.folder / "environment.json").read_text())["PROXY_API_KEY"] == "from-file"
    assert "PROXY_API_KEY in .env" in checkout.output


def test_a_blank_key_in_the_shell_and_none_in_the_file_makes_one(checkout: Checkout) -> None:
    checkout.variables["PROXY_API_KEY"] = ""
    checkout.start()
    checkout.wait_ready()
    assert "wrote .env with a new PROXY_API_KEY" in checkout.output
    key = (checkout.folder / ".env").read_text().strip().removeprefix("PROXY_API_KEY=")
    assert json.loads((checkout.folder / "environment.json").read_text())["PROXY_API_KEY"] == key


def test_a_port_in_use_is_named_and_nothing_is_started(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", checkout.port)):
        ended = checkout.run()
    assert ended.returncode == 1
    assert f"port {checkout.port} is in use by " in ended.stderr
    assert f"(process {os.getpid()}); end that, or change http_options.port" in ended.stderr
    assert not (checkout.folder / "environment.json").exists()


def test_too_little_memory_is_named(checkout: Checkout) -> None:
    ended = checkout.run("--memory", "1000000")
    assert ended.returncode == 1
    assert ended.stderr.startswith("make run: needs 1e+06 GiB of available memory, found ")


def test_the_line_of_the_model_check_is_passed_on(checkout: Checkout) -> None:
    ended = checkout.run("--check", "sh -c 'echo no model named x, there is: demo >&2; exit 1'")
    assert (ended.returncode, ended.stderr) == (1, "make run: no model named x, there is: demo\n")
    assert not (checkout.folder / "environment.json").exists()


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            "/no/such/model",
            "no model '/no/such/model': it is no directory and no hub id, and configs/models has: demo, ",
        ),
        ("llama-3.1-8b", "models need more GPUs (llama-3.1-8b 1) than this machine has (0): choose another model, or "),
    ],
    ids=["missing", "needs a GPU"],
)
def test_a_model_that_cannot_be_served_here_is_named_before_anything_starts(
    checkout: Checkout, model: str, line: str
) -> None:
    shutil.copy(ROOT / "serve_config.yaml", checkout.folder)
    checkout.arguments[2:4] = []  # the check that comes with the launcher
    checkout.variables |= {"DEFAULT_MODEL": model, "CUDA_VISIBLE_DEVICES": ""}
    ended = checkout.run()
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"make run: {line}")
    assert len(ended.stderr.splitlines()) == 1
    assert not (checkout.folder / "environment.json").exists()


def test_the_model_check_is_told_the_gpus_of_the_machine(checkout: Checkout) -> None:
    checkout.variables["CUDA_VISIBLE_DEVICES"] = ""
    ended = checkout.run("--check", """sh -c 'echo "$0 $*" >&2; exit 1'""")
    assert ended.stderr == "make run: serve_config.yaml --gpus 0\n"


def test_a_config_that_is_not_there_is_named(checkout: Checkout) -> None:
    ended = checkout.run("--config", "other.yaml")
    assert ended.returncode == 1
    assert ended.stderr == "make run: cannot read other.yaml: [Errno 2] No such file or directory: 'other.yaml'\n"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("misconfigured", "ConfigError: model demo: too long"), ("engineless", "ValueError: no room")],
)
def test_a_model_that_fails_ends_everything_with_its_error(checkout: Checkout, behaviour: str, reason: str) -> None:
    checkout.behave(behaviour)
    ended = checkout.run()
    line = f"make run: model demo failed to start: {reason} (see .run/serve.log and .run/ray_logs/serve)\n"
    assert (ended.returncode, ended.stderr) == (1, line)
    assert checkout.processes() == []
    assert (checkout.folder / ".run" / "ray_logs" / "serve" / "controller_7.log").exists()


def test_a_service_that_ends_by_itself_is_reported_by_its_last_error(checkout: Checkout) -> None:
    checkout.behave("exit")
    ended = checkout.run()
    assert (ended.returncode, ended.stderr) == (
        1,
        "make run: the service ended: RuntimeError: the cluster could not be formed (see .run/serve.log)\n",
    )
    assert checkout.processes() == []


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("unbuildable", "ValueError: no models in args"), ("crashing", "ValueError: no port")],
)
def test_an_application_that_serve_gives_up_is_reported(checkout: Checkout, behaviour: str, reason: str) -> None:
    checkout.behave(behaviour)
    ended = checkout.run()
    line = f"make run: the gateway could not be started: {reason} (see .run/serve.log)\n"
    assert (ended.returncode, ended.stderr) == (1, line)
    assert checkout.processes() == []
    assert (checkout.folder / ".run" / "ray_logs" / "serve" / "controller_7.log").exists()
