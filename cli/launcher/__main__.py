"""The door of `make run`: checks, start, progress, end; see --help."""

import argparse
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from cli.launcher import checks, env_file
from cli.launcher.errors import StartError
from cli.launcher.failures import deploy_failure, last_words, model_failure
from cli.launcher.progress import STEPS, Health, ask_health, current_step
from cli.launcher.service import Service, environment
from cli.launcher.view import StartView, show_ready
from cli.machine import visible_gpus

POLL_S = 0.3
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EPILOG = """exit codes: 0 ended on request (Ctrl+C, SIGTERM, SIGHUP), 1 could not start or ended by itself,
2 wrong usage. Whatever ends it, kill -9 included, no process stays behind."""


class StopRequest(BaseException):
    """Ctrl+C, SIGTERM or SIGHUP has arrived."""


def read_arguments() -> argparse.Namespace:
    """The command line; --serve and --check exist for wrappers and tests."""
    parser = argparse.ArgumentParser(
        prog="python -m cli.launcher",
        description="Start the service, show what it waits for, and end all of it on Ctrl+C.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve = shlex.quote(str(Path(sys.executable).with_name("serve")))
    python = shlex.quote(sys.executable)
    parser.add_argument("--config", type=Path, default=Path("serve_config.yaml"), help="Serve config file")
    parser.add_argument("--memory", type=float, default=4.0, metavar="GIB", help="available memory it must find")
    parser.add_argument("--serve", default=f"{serve} run", metavar="COMMAND", help="what runs the config")
    parser.add_argument("--check", default=f"{python} -m serve_app.check", metavar="COMMAND", help="what checks it")
    return parser.parse_args()


def raise_on_signals() -> None:
    """The first signal that asks for the end raises StopRequest; later ones do not disturb the end."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for later in END_SIGNALS:
            signal.signal(later, signal.SIG_IGN)
        raise StopRequest

    for number in END_SIGNALS:
        signal.signal(number, stop)


def wait_until_ready(service: Service, base_url: str, view: StartView) -> Health:
    """Shows the start step by step until every model answers. Raises StartError when that cannot be."""
    while True:
        health, ended = ask_health(base_url), service.has_ended
        log = service.log.read_text(errors="replace")  # after the two, so that it holds what led to them
        if ended:
            raise StartError(f"the service ended: {last_words(log)} (see {service.log})")
        if health is None and (reason := deploy_failure(log, service.controller_log())):
            raise StartError(f"the gateway could not be started: {reason} (see {service.log})")
        if health is not None and (failed := health.failed()):
            reason = model_failure(failed[0], log, service.controller_log())
            where = f"{service.log} and {service.ray_logs}/serve"
            raise StartError(f"model {failed[0]} failed to start: {reason} (see {where})")
        step = current_step(log, health)
        view.update(step, health)
        if health is not None and step == len(STEPS):
            return health
        time.sleep(POLL_S)


def run(args: argparse.Namespace, console: Console) -> None:
    """Checks, starts and stays until the service ends. Raises StartError."""
    dotenv, scratch = Path(".env"), Path(".run")
    base_url = check(args, dotenv)
    has_key = env_file.KEY in env_file.in_shell()
    if not has_key and env_file.ensure_key(dotenv):
        console.print(f"wrote {dotenv} with a new {env_file.KEY}")
    scratch.mkdir(mode=0o700, exist_ok=True)
    log = scratch / "serve.log"
    console.print(f"starting; everything is logged to {log}")
    variables = environment(env_file.read(dotenv), scratch)
    with Service([*shlex.split(args.serve), str(args.config)], variables, log) as service:
        with StartView(console) as view:
            health = wait_until_ready(service, base_url, view)
        key_place = f"{env_file.KEY} in {'your shell' if has_key else dotenv}"
        show_ready(console, base_url, health, key_place, str(log))
        service.wait()
        raise StartError(f"the service ended: {last_words(log.read_text(errors='replace'))} (see {log})")


def check(args: argparse.Namespace, dotenv: Path) -> str:
    """Everything that can be known before a start; the address as a URL. Raises StartError."""
    host, port = checks.read_address(args.config)
    checks.check_port(host, port, args.config)
    checks.check_memory(args.memory)
    variables = {**env_file.read(dotenv), **env_file.in_shell()}
    gpus = str(visible_gpus(variables))
    checks.check_models([*shlex.split(args.check), str(args.config), "--gpus", gpus], variables)
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not bound


def main() -> int:
    """Exit codes as in EPILOG."""
    args = read_arguments()
    console = Console(highlight=False)
    raise_on_signals()
    try:
        run(args, console)
    except StopRequest:
        console.print("stopped")
        return 0
    except StartError as error:
        sys.stderr.write(f"make run: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
