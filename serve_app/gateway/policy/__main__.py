"""`python -m serve_app.gateway.policy`: print the table of every field of every route."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from serve_app.check import read_services
from serve_app.gateway.policy.listing import Section, markdown, sections
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.settings import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.gateway.policy", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="a Serve config; without it, the default settings")
    parser.add_argument("--route", help="only this route, such as /v1/embeddings")
    parser.add_argument("--markdown", action="store_true", help="as the page docs/fields.md")
    args = parser.parse_args()
    try:
        policy = read_services(args.config)[0].gateway.policy if args.config else PolicyConfig()
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    found = [section for section in sections(policy) if args.route in {None, *section.paths}]
    if not found:
        parser.error(f"there is no route {args.route}")
    if args.markdown:
        print(markdown(found), end="")  # noqa: T201
    else:
        console = Console(highlight=False)
        for section in found:
            console.print(_table(section), *map(Markdown, section.notes), "")
    return 0


def _table(section: Section) -> Table:
    table = Table(title=" ".join(section.paths), title_justify="left")
    for heading in ("field", "verdict", "bounds, or the reason"):
        table.add_column(heading, overflow="fold")
    for line in section.lines:
        table.add_row(line.field, line.verdict.replace("`", ""), line.says.replace("`", ""))
    return table


if __name__ == "__main__":
    sys.exit(main())
