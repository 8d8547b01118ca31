"""The console program `vllm-chat`: its commands, and what they have in common."""

import sys
from io import TextIOWrapper

import typer

from cli.commands import chat, health, keys, models, usage

app = typer.Typer(
    name="vllm-chat",
    help="""Chat with the models of a vllm-chat-backend service, or any OpenAI-compatible one.""",
    epilog="""\b
Start here:
  vllm-chat health --wait 300     wait until the service is up
  vllm-chat chat                  talk

\b
Environment:
  OPENAI_BASE_URL   the service, by default http://127.0.0.1:8787/v1
  OPENAI_API_KEY    the key; else PROXY_API_KEY, also from ./.env
  NO_COLOR          no colours
""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def prepare() -> None:
    """Let no character end the program that the terminal's encoding lacks."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=models.EPILOG)(models.models)
app.command(epilog=health.EPILOG)(health.health)
app.add_typer(keys.app, name="keys")
app.command(epilog=usage.EPILOG)(usage.usage)
