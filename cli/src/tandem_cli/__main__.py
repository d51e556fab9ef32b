"""The `tandem` command."""

from __future__ import annotations

import sys

import typer
from tandem_common.config import ConfigError

from tandem_cli.commands.bench import bench
from tandem_cli.commands.chat import chat
from tandem_cli.commands.doctor import doctor
from tandem_cli.commands.explain import explain
from tandem_cli.commands.simulate import simulate
from tandem_cli.commands.top import top
from tandem_cli.commands.up import up

app = typer.Typer(
    name="tandem",
    help="Serve large language models with separate workers for reading prompts and writing tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
)
for command in (up, chat, bench, top, explain, doctor, simulate):
    app.command()(command)


def main() -> None:
    """Run the command line; what cannot work ends with one line that says why, and exit code 2."""
    try:
        app()
    except ConfigError as error:
        sys.stderr.write(f"tandem: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
