"""What a demo shows while it works: steps and a bar for the rounds, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_SENTENCE_WIDTH = 70


class Show:
    """Used in `with`; `close` may be called before its end, to print below."""

    def __init__(self, out: Console) -> None:
        self._out = out
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
        self._progress = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)

    def says(self, text: str) -> None:
        """Print a line."""
        self._out.print(f"[green]✓[/] {escape(text)}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step while it lasts, and how long it took."""
        task = self._progress.add_task(text, total=None)
        started = time.monotonic()
        try:
            yield
        finally:
            self._progress.remove_task(task)
        self.says(f"{text} ({time.monotonic() - started:.1f} s)")

    @contextmanager
    def rounds(self, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar over the rounds. Yields what moves it: (rounds done, a sentence)."""
        task = self._progress.add_task("Training", total=total)
        shown = -1

        def move(done: int, sentence: str) -> None:
            nonlocal shown
            text = escape(sentence[:_SENTENCE_WIDTH])
            self._progress.update(task, completed=done, description=f"Round {done}/{total} · {text}")
            if not self._out.is_terminal and done != shown and (done % 10 == 0 or done == total):
                self._out.print(f"  round {done}/{total} · {text}")
            shown = done

        try:
            yield move
        finally:
            self._progress.remove_task(task)

    def close(self) -> None:
        """Take the moving lines off the terminal."""
        self._progress.stop()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
