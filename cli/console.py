"""The consoles that all output goes through: standard output for answers, standard error for the rest."""

from rich.console import Console
from rich.theme import Theme

THEME = Theme(
    {
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold italic",
        "markdown.h5": "italic",
        "markdown.code": "cyan",
        "markdown.link": "none",
        "markdown.link_url": "underline cyan",
        "markdown.hr": "dim",
        "markdown.block_quote": "dim",
        "markdown.item.bullet": "cyan",
        "markdown.item.number": "cyan",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }
)


def terminal(stderr: bool = False) -> Console:
    """Return the console of a standard stream. It takes texts as they are: no markup, no emoji codes."""
    return Console(stderr=stderr, theme=THEME, highlight=False, markup=False, emoji=False)
