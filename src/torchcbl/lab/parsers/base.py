"""What all commands' parsers have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

Commands = argparse._SubParsersAction  # what add_subparsers returns has no public name


def add_command(
    group: Commands[argparse.ArgumentParser], name: str, about: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command: its name, what it does (the first sentence stands in the list), and examples of its use."""
    return group.add_parser(
        name,
        help=about[0].lower() + about[1:].partition(".")[0],
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def a_folder(text: str) -> Path:
    """Read a folder's path; `~` is the home, also where no shell has said so, as in --out=~/x."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name where there is no such user: a file that is called so
        return Path(text)
