"""The conversation on a terminal: reads lines, answers them, obeys the few commands that start with `/`."""

import asyncio
import re
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client
from cli.conversation import Answer, Conversation
from cli.errors import BusyError, ClientError, ModelUnknownError, ServiceError
from cli.keyboard import quiet_keyboard, read_line
from cli.render import view_on
from cli.report import countdown, report
from cli.sanitize import sanitize
from cli.turn import take_turn

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)  # a path like /usr/bin is a message, not a command

HELP = {
    "/model [NAME]": "list the models, or let another one answer",
    "/system [TEXT]": "show or set the system prompt",
    "/clear": "forget the conversation",
    "/retry": "ask the last question again",
    "/help": "this list",
    "/quit": "leave, like Ctrl+D",
    "Ctrl+C": "stop the answer and keep what came",
    "\\ at the end": "go on with the message on the next line",
}


@dataclass(slots=True)
class Repl:
    """An open chat. `runner` runs one answer at a time, so that Ctrl+C ends the answer and not the chat."""

    client: Client
    conversation: Conversation
    runner: asyncio.Runner
    console: Console
    show_stats: bool
    last_prompt: str = ""

    def run(self) -> None:
        """Answer lines until /quit, Ctrl+D, or Ctrl+C at the prompt."""
        while True:
            try:
                line = read_line(colour=not self.console.no_color)
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line in {"/quit", "/exit"}:
                return
            if line:
                self._obey(line)

    def _obey(self, line: str) -> None:
        command = COMMAND.fullmatch(line)
        try:
            if command:
                self._command(command[1], (command[2] or "").strip())
            else:
                self._answer(line)
        except ClientError as error:
            report(self.console, error)
            self.console.print()
        except KeyboardInterrupt:
            self._note("interrupted")

    def _command(self, name: str, argument: str) -> None:
        match name:
            case "model":
                self._model(argument)
            case "system":
                self._system(argument)
            case "clear":
                self.conversation.turns.clear()
                self._note("The conversation starts anew.")
            case "retry" if self.last_prompt:
                self.conversation.take_back(self.last_prompt)
                self._answer(self.last_prompt)
            case "retry":
                self._note("Nothing has been asked yet.")
            case "help":
                self._help()
            case _:
                self._note(f"There is no /{name}. /help lists what there is.")

    def _model(self, name: str) -> None:
        models = self.runner.run(self.client.models())
        if not name:
            self._note("  ".join(model.id for model in models))
        elif name in {model.id for model in models}:
            self.conversation.model = name
            self._note(f"{name} answers from here on.")
        else:
            raise ModelUnknownError.among(name, [model.id for model in models])

    def _system(self, prompt: str) -> None:
        if prompt:
            self.conversation.system = prompt
        self._note(f"System prompt: {self.conversation.system or 'none'}")

    def _help(self) -> None:
        table = Table.grid(padding=(0, 2))
        for usage, meaning in HELP.items():
            table.add_row(Text(f"  {usage}", style="cyan"), meaning)
        self.console.print(table)
        self.console.print()

    def _note(self, text: str) -> None:
        self.console.print(Text(sanitize(text), style="dim"), soft_wrap=True)
        self.console.print()

    def _answer(self, prompt: str) -> None:
        self.last_prompt = prompt
        self.console.print()
        self.conversation.ask(prompt)
        text = ""
        try:
            with quiet_keyboard():
                answer = self.runner.run(self._patient_turn())
            text = answer.text
        finally:
            self.conversation.settle(text)
        self._sum_up(answer)

    async def _patient_turn(self) -> Answer:
        """Take the turn, and take it again for as long as the service is not up yet."""
        while True:
            try:
                return await take_turn(self.client, self.conversation.body(), view_on(self.console))
            except BusyError as busy:
                if not busy.loading:
                    raise
                await countdown(self.console, busy)

    def _sum_up(self, answer: Answer) -> None:
        if self.show_stats and (summary := answer.summary()):
            self.console.print(Text(summary, style="dim"))
        if answer.failure:
            advice = "What came is kept. /retry asks again."
            report(self.console, ServiceError(f"The answer broke off: {answer.failure}.", advice))
        self.console.print()
