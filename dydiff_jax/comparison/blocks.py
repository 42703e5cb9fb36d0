"""Report elements, rendered as Markdown and HTML.

Text marks `code` and **bold** as Markdown does; everything else is literal.
"""

import base64
import html
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TYPES = {".png": "image/png", ".gif": "image/gif"}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h1, h2 { overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7rem; max-width: 16rem;
  overflow-wrap: anywhere; position: sticky; left: 0; background: #fff; }
@media (max-width: 30rem) { th:first-child, td:first-child { max-width: 8rem; } }
.words td { text-align: left; white-space: normal; min-width: 7rem; vertical-align: top; }
.words th { text-align: left; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: 0.9rem; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.8rem; font-size: 0.85rem; }
code { background: #f5f5f5; padding: 0 0.2rem; overflow-wrap: anywhere; }
pre code { padding: 0; overflow-wrap: normal; }
""".strip()


class Block(Protocol):
    """A report element."""

    def markdown(self) -> str:
        """As markdown."""

    def html(self) -> str:
        """As HTML."""


@dataclass(frozen=True)
class Heading:
    """The heading of a section."""

    text: str

    def markdown(self) -> str:
        """As markdown."""
        return f"## {self.text}\n"

    def html(self) -> str:
        """As HTML."""
        return f"<h2>{inline(self.text)}</h2>"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def markdown(self) -> str:
        """As markdown."""
        return f"{self.text}\n"

    def html(self) -> str:
        """As HTML."""
        return f"<p>{inline(self.text)}</p>"


@dataclass(frozen=True)
class Items:
    """A list of points."""

    items: Sequence[str]

    def markdown(self) -> str:
        """As markdown."""
        return "\n".join(f"- {item}" for item in self.items) + "\n"

    def html(self) -> str:
        """As HTML."""
        return "<ul>\n" + "\n".join(f"<li>{inline(item)}</li>" for item in self.items) + "\n</ul>"


@dataclass(frozen=True)
class Code:
    """Lines of a shell."""

    lines: Sequence[str]

    def markdown(self) -> str:
        """As markdown."""
        return "```bash\n" + "\n".join(self.lines) + "\n```\n"

    def html(self) -> str:
        """As HTML."""
        return f"<pre><code>{html.escape(chr(10).join(self.lines))}</code></pre>"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading.

    Attributes:
      heading: of the columns.
      rows: of as many cells each.
      words: cells are sentences, left-aligned; otherwise numbers, right-aligned but for the first column.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False

    def markdown(self) -> str:
        """As markdown."""
        rule = ["---", *["---" if self.words else "---:"] * (len(self.heading) - 1)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (self.heading, rule, *self.rows)) + "\n"

    def html(self) -> str:
        """As HTML."""
        heading = "".join(f"<th>{inline(cell)}</th>" for cell in self.heading)
        rows = ["".join(f"<td>{inline(cell)}</td>" for cell in row) for row in self.rows]
        lines = [
            "<thead>",
            f"<tr>{heading}</tr>",
            "</thead>",
            "<tbody>",
            *(f"<tr>{row}</tr>" for row in rows),
            "</tbody>",
        ]
        kind = "table words" if self.words else "table"
        return "\n".join([f'<div class="{kind}"><table>', *lines, "</table></div>"])


@dataclass(frozen=True)
class Figure:
    """An image with a caption: a link in markdown, the image itself in HTML.

    Attributes:
      path: of the file.
      home: directory of the report.
      caption: what it shows.
    """

    path: pathlib.Path
    home: pathlib.Path
    caption: str

    def markdown(self) -> str:
        """As markdown."""
        return f"![{self.caption}]({self.path.relative_to(self.home).as_posix()})\n\n{self.caption}\n"

    def html(self) -> str:
        """As HTML."""
        data = base64.b64encode(self.path.read_bytes()).decode("ascii")
        source, caption = f"data:{TYPES[self.path.suffix]};base64,{data}", inline(self.caption)
        image = f'<img alt="{html.escape(self.caption)}" src="{source}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def inline(text: str) -> str:
    """Text with `code` and **bold** as HTML; a line break stays one."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """A whole report as Markdown."""
    return "\n".join([f"# {title}\n", *(block.markdown() for block in blocks)])


def page(title: str, blocks: Sequence[Block]) -> str:
    """A whole report as one self-contained HTML file."""
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{inline(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
