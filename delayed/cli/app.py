"""The group of all commands, and what an error looks like: one line, the way out, the right exit code."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from delayed.errors import BrokerUnavailable, ConfigError, DelayedError
from delayed.version import __version__

OK, FAILED, USAGE = 0, 1, 2  # exit codes
INTERRUPTED = 128 + signal.SIGINT

_COMMANDS = (
    "worker", "sweeper", "schedule", "status", "workers", "pause", "resume", "stop", "cancel", "stack", "inspect",
    "dead", "replay", "purge", "migrate", "demo",
)  # fmt: skip


class Commands(click.Group):
    """Imports a command's module when that command is asked for, so that a worker does not carry the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"delayed.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in _COMMANDS:
            near = difflib.get_close_matches(name, _COMMANDS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(_COMMANDS)}"
            raise click.UsageError(f"no command '{name}'; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,  # `delayed` alone is a question, not an error
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  delayed demo                      see it work, on a file in a temporary folder
  delayed worker app                run the tasks of the queues in app.py
  delayed status --watch            look on
""",
)
@click.version_option(__version__, "--version", message="delayed %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run Python functions later, in processes that can be killed.

    The store is --url where a command has it, else DELAYED_URL, else the file delayed.db in this folder.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
    """
    try:
        code = cli.main(args, prog_name="delayed", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return code if isinstance(code, int) else OK
    except click.UsageError as error:
        return _usage(error)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except BrokerUnavailable as error:
        return _fail(f"{error}; start the store, or name another one with --url or DELAYED_URL", FAILED)
    except DelayedError as error:
        return _fail(str(error), FAILED)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `delayed status | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail too
        return FAILED


def _usage(error: click.UsageError) -> int:
    path = error.ctx.command_path if error.ctx else "delayed"
    return _fail(f"{error.format_message().rstrip('.')} (see '{path} --help')", USAGE)


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code
