"""The program as a script runs it, in this process: output in pipes, a terminal that can do nothing."""

from typer.testing import CliRunner, Result

from cli.main import app


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, arguments, input=stdin)
