"""`python -m cli` is `vllm-chat`."""

from cli.main import app

app(prog_name="vllm-chat")
