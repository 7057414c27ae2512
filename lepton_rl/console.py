"""What commands print for people: lines and tables."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def say(line: str) -> None:
    """Print a line as it is."""
    Console(soft_wrap=True, highlight=False).print(escape(line))


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """Print a table whose first columns hold words, which wrap, and whose other columns hold figures."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for i, title in enumerate(titles):
        if i < words:
            table.add_column(title, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(escape, line))
    Console().print(table)
