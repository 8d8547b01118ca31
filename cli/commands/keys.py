"""`vllm-chat keys`: makes, lists, revokes and rotates the keys of the keys file."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from cli.console import terminal
from cli.errors import KeysFileError
from cli.report import exit_codes
from cli.sanitize import one_line

if TYPE_CHECKING:
    from cli.keys_file import KeyRecord

EPILOG = """\b
Examples:
  vllm-chat keys create ci --expires 90d --rpm 60 --tpm 100000
  vllm-chat keys create bob --models 'llama-*' --endpoints 'chat*,models'
  vllm-chat keys create bench --feature benchmark --tier low > bench.key
  vllm-chat keys list --json | jq '.[] | select(.status == "expired") | .id'
  vllm-chat keys rotate k3v9x0a2bq --overlap 7d
  vllm-chat keys revoke k3v9x0a2bq

\b
Environment:
  KEYS_FILE         the keys file, by default ./keys.yaml
  KEY_PEPPER_FILE   the service's pepper file, if it has one

\b
A key is shown once, alone on standard output; the file holds its digest.
The service follows the file within 2 s.
Exit codes: 0 ok, 1 the keys file cannot be used, 2 wrong usage, 130 interrupted.
"""
OVERLAP = timedelta(hours=24)
SHORTEST_PEPPER = 32  # bytes, as the service has it
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

app = typer.Typer(help="Make, list, revoke and rotate the keys of the keys file.", epilog=EPILOG, no_args_is_help=True)


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,5})([mhdw])", text, re.ASCII)
    if not found:
        raise typer.BadParameter("give a number and m, h, d or w, such as 24h")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def _future(text: str) -> datetime:
    if re.fullmatch(r"\d+[a-z]", text, re.ASCII):
        moment = _now() + _span(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter("give a span such as 30d, or a date such as 2030-12-31 (UTC)") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= _now():
        raise typer.BadParameter("it is in the past")
    return moment


File = Annotated[
    Path, typer.Option("--file", "-f", metavar="PATH", envvar="KEYS_FILE", dir_okay=False, help="The keys file.")
]
Pepper = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", envvar="KEY_PEPPER_FILE", exists=True, dir_okay=False, help="The service's pepper file."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, for people.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `list` shows it.")]
Models = Annotated[
    list[str] | None, typer.Option(metavar="GLOB,...", help="Models it may use; by default all. Also repeated.")
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB,...", help="Routes it may use, such as /v1/embeddings or chat*; by default all."),
]
Features = Annotated[
    list[str] | None, typer.Option("--feature", metavar="NAME,...", help="More that it may, such as benchmark.")
]
Expires = Annotated[
    datetime | None, typer.Option(parser=_future, metavar="30d|DATE", help="When it ends; by default never.")
]
NewEnd = Annotated[
    datetime | None, typer.Option("--expires", parser=_future, metavar="30d|DATE", help="A new end for the key.")
]
Overlap = Annotated[
    timedelta | None,
    typer.Option(parser=_span, metavar="SPAN", help="How long the old secret still works; by default 24h, 0h for not."),
]
Rpm = Annotated[int | None, typer.Option("--rpm", min=1, max=10**9, metavar="N", help="Requests a minute.")]
Tpm = Annotated[
    int | None, typer.Option("--tpm", min=1, max=10**9, metavar="N", help="Tokens a minute, prompt and output.")
]
Concurrent = Annotated[int | None, typer.Option(min=1, max=10**6, metavar="N", help="Requests at the same time.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, metavar="N", help="Output tokens of one request.")]
Context = Annotated[int | None, typer.Option(min=1, metavar="N", help="Prompt plus output tokens of one request.")]
TierName = Annotated[Literal["high", "normal", "low"], typer.Option(help="Who goes first when requests wait.")]
CacheGroup = Annotated[
    str | None, typer.Option(metavar="NAME", help="Keys of one group share the prefix cache; by default it is alone.")
]
AsJson = Annotated[bool, typer.Option("--json", help="A JSON list, for scripts.")]

DEFAULT_FILE = Path("keys.yaml")


@app.command(epilog=EPILOG)
def create(
    name: Name,
    *,
    models: Models = None,
    endpoints: Endpoints = None,
    feature: Features = None,
    expires: Expires = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    max_tokens: MaxTokens = None,
    context: Context = None,
    tier: TierName = "normal",
    cache_group: CacheGroup = None,
    file: File = DEFAULT_FILE,
    pepper_file: Pepper = None,
) -> None:
    """Make a key, and show it this once."""
    limits = {
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrent": concurrent,
        "max_tokens": max_tokens,
        "context": context,
    }
    rights = {
        "name": name,
        "expires": expires,
        "models": _split(models) or ["*"],
        "endpoints": _split(endpoints),
        "features": _split(feature),
        "limits": limits,
        "tier": tier,
        "cache_group": cache_group,
    }
    with exit_codes(terminal(stderr=True)):
        from cli import keys_file  # noqa: PLC0415  pydantic is not for --help to load

        try:
            key, record = keys_file.new_record(rights, _pepper(pepper_file), _now())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        with keys_file.editing(file, create=True) as records:
            records.append(record)
        _show(key, f"Key {record.id} ({record.name}) is in {file}.")


@app.command("list", epilog=EPILOG)
def list_keys(file: File = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the keys: what they may, and whether they work."""
    with exit_codes(terminal(stderr=True)):
        from cli import keys_file, keys_table  # noqa: PLC0415  pydantic is not for --help to load

        records = keys_file.read(file)
        if as_json:
            print(keys_table.as_json(records, _now()))  # noqa: T201  data
        else:
            terminal().print(keys_table.table(records, _now()))


@app.command(epilog=EPILOG)
def revoke(key_id: Id, file: File = DEFAULT_FILE) -> None:
    """End a key now and for good."""
    with exit_codes(terminal(stderr=True)):
        from cli import keys_file  # noqa: PLC0415  pydantic is not for --help to load

        with keys_file.editing(file) as records:
            at = _index(records, key_id, file)
            records[at] = records[at].model_copy(update={"revoked": records[at].revoked or _now()})
        _note(f"Key {key_id} ({records[at].name}) is revoked.")


@app.command(epilog=EPILOG)
def rotate(
    key_id: Id,
    *,
    overlap: Overlap = None,
    expires: NewEnd = None,
    file: File = DEFAULT_FILE,
    pepper_file: Pepper = None,
) -> None:
    """Give a key a new secret, and show it this once. Its id, rights and limits stay."""
    with exit_codes(terminal(stderr=True)):
        from cli import keys_file  # noqa: PLC0415  pydantic is not for --help to load

        now = _now()
        ends = now + (OVERLAP if overlap is None else overlap)
        with keys_file.editing(file) as records:
            at = _index(records, key_id, file)
            key, records[at] = keys_file.rotated(records[at], _pepper(pepper_file), now, ends, expires)
        until = f"works until {ends:%Y-%m-%d %H:%M} UTC" if ends > now else "no longer works"
        _show(key, f"Key {key_id} ({records[at].name}) has a new secret; the old one {until}.")


def _split(values: list[str] | None) -> list[str]:
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def _index(records: "list[KeyRecord]", key_id: str, file: Path) -> int:
    for at, record in enumerate(records):
        if record.id == key_id:
            return at
    raise KeysFileError(f"{file} has no key {key_id!r}.", "`vllm-chat keys list` shows the ids.")


def _pepper(file: Path | None) -> bytes:
    if file is None:
        return b""
    pepper = file.read_bytes().strip()
    if len(pepper) < SHORTEST_PEPPER:
        raise KeysFileError(f"The pepper file {file} holds fewer than {SHORTEST_PEPPER} bytes.")
    return pepper


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _show(key: str, note: str) -> None:
    print(key)  # noqa: T201  data
    _note(f"{note} It is shown this once.")


def _note(text: str) -> None:
    terminal(stderr=True).print(Text(one_line(text), style="dim"), soft_wrap=True)
