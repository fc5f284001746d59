"""The command line. Only what parsing needs is imported here, so that help answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from torchcbl import __version__
from torchcbl.lab import commands
from torchcbl.lab.parsers import COMMANDS

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 when a run failed, 2 for a user's error, 130 for Ctrl-C.

    Args:
        arguments: The command's words; those of the process if none are given.
    """
    options = _parser().parse_args(arguments)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last finished epochs.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads what we print has had enough, as in `torchcbl sites MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        return commands.say_error(f"{error.name} is not installed: pip install 'torchcbl[lab]'")
    except ImportError as error:  # of an extra; it says which
        return commands.say_error(str(error))
    except (ValueError, TypeError, OSError) as error:
        return commands.say_error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchcbl",
        description="Does top-down feedback help a network, and what does it cost? Train both and compare.",
        epilog="examples:\n"
        "  torchcbl compare                  the demo, about half a minute on two cores\n"
        "  torchcbl compare cifar10 --help   what can be changed\n"
        "  torchcbl report runs/demo         the report again",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"torchcbl {__version__}")
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(group)
    return parser
