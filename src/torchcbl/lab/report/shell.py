"""What every page of the laboratory stands in: one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template

from matplotlib.figure import Figure

from torchcbl.lab.report.drawing import as_svg

_COLUMN = 5.0  # inches; wider figures take the page's width


def write_page(title: str, template: str, **parts: str) -> str:
    """Fill a template of this folder with parts, each of them HTML, and put it into the shell.

    Returns:
        HTML with style and figures inside, without any reference to another file or address.
    """
    body = _template(template).substitute(parts)
    return _template("shell.html").substitute(title=escape(title), body=body)


def paragraphs(sentences: Iterable[str]) -> str:
    """Write sentences as HTML, one paragraph each."""
    return "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def captioned(name: str, figure: Figure, caption: str) -> str:
    """Write a figure with its caption as HTML.

    Args:
        name: Unique in the page.
        figure: The figure.
        caption: Its caption, plain text.
    """
    wide = ' class="wide"' if figure.get_figwidth() > _COLUMN else ""
    return f"<figure{wide}>{as_svg(figure, name)}<figcaption>{escape(caption)}</figcaption></figure>\n"


def _template(name: str) -> Template:
    return Template(resources.files(__package__).joinpath(name).read_text("utf-8"))
