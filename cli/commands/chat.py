"""`vllm-chat chat`: one answer for a script, or a conversation for a person."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli.console import terminal
from cli.conversation import Answer, Conversation
from cli.errors import BusyError, ExitCode, ServiceError
from cli.keyboard import quiet_keyboard
from cli.report import countdown, exit_codes
from cli.sanitize import one_line
from cli.settings import Settings, load_settings

if TYPE_CHECKING:
    from cli.client import Client

EPILOG = """\b
Examples:
  vllm-chat chat
  vllm-chat chat --model demo --system "Answer in one sentence."
  vllm-chat chat --once "Name three rivers." > rivers.txt
  git diff | vllm-chat chat --system "Write a commit message." --no-stats

\b
The key is OPENAI_API_KEY, else PROXY_API_KEY, else PROXY_API_KEY in ./.env.
Exit codes: 0 ok, 1 the service failed, 2 wrong usage, 130 interrupted.
"""

Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="Who answers; by default the first model.")
]
System = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, metavar="0..2", help="0 is steady, 1 is lively.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, metavar="N", help="Length at which an answer is cut.")]
Once = Annotated[str | None, typer.Option(metavar="PROMPT", help="Answer this and leave.")]
Stats = Annotated[bool, typer.Option("--stats/--no-stats", help="TTFT and tokens/s after each answer.")]


def chat(
    *,
    model: Model = None,
    system: System = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    once: Once = None,
    stats: Stats = True,
) -> None:
    """Talk with a model.

    A prompt from --once or a pipe gets one answer: alone on standard output, its figures on standard error.
    """
    aside = terminal(stderr=True)
    with exit_codes(aside):
        settings = load_settings()
        prompt = _given_prompt(once)
        conversation = Conversation(model or "", system, temperature, max_tokens)
        if prompt is None:
            _converse(settings, conversation, stats)
        else:
            with quiet_keyboard():
                answer = asyncio.run(_answer_once(settings, conversation, prompt))
            _close(answer, stats)


def _given_prompt(once: str | None) -> str | None:
    """Return the prompt of a single answer, None for a conversation."""
    if once is None and sys.stdin.isatty():
        if not sys.stdout.isatty():
            raise typer.BadParameter("output goes to a file or pipe; give the prompt with --once or by pipe")
        return None
    prompt = sys.stdin.buffer.read().decode(errors="replace") if once is None else once
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty")
    return prompt.strip().encode(errors="replace").decode()


def _converse(settings: Settings, conversation: Conversation, stats: bool) -> None:
    from cli.client import Client  # noqa: PLC0415  httpx is not for --help to load
    from cli.repl import Repl  # noqa: PLC0415

    console = terminal()
    with asyncio.Runner() as runner:
        client = Client(settings)
        try:
            if not conversation.model:
                conversation.model = runner.run(_default_model(client, patient=True))
            where = f"{one_line(conversation.model)} at {settings.root_url}. /help for commands, Ctrl+D to leave."
            console.print(Text(where, style="dim"))
            console.print()
            Repl(client, conversation, runner, console, stats).run()
        finally:
            runner.run(client.aclose())


async def _answer_once(settings: Settings, conversation: Conversation, prompt: str) -> Answer:
    from cli.client import Client  # noqa: PLC0415  httpx is not for --help to load
    from cli.render import view_on  # noqa: PLC0415
    from cli.turn import take_turn  # noqa: PLC0415

    client = Client(settings)
    try:
        conversation.model = conversation.model or await _default_model(client, patient=False)
        conversation.ask(prompt)
        return await take_turn(client, conversation.body(), view_on(terminal()))
    finally:
        await client.aclose()


async def _default_model(client: "Client", patient: bool) -> str:
    """Return the first model that can chat; a patient caller waits for a service that is still loading."""
    from cli.replies import default_model  # noqa: PLC0415

    while True:
        try:
            models = await client.models()
        except BusyError as busy:
            if not (patient and busy.loading):
                raise
            await countdown(terminal(), busy)
            continue
        if model := default_model(models):
            return model.id
        raise ServiceError("The service has no model that can chat.", "`vllm-chat models` lists what it has.")


def _close(answer: Answer, stats: bool) -> None:
    """Print the figures of a single answer and turn its end into an exit code."""
    aside = terminal(stderr=True)
    if stats and (summary := answer.summary()):
        aside.print(Text(summary, style="dim"))
    if answer.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if answer.failure:
        raise ServiceError(f"The answer broke off: {answer.failure}.", "What came is above.")
