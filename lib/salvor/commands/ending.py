"""How a task ends: with the exit code of its error's class, and on standard error what to read at 3 a.m."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from salvor import show
from salvor.errors import SalvorError
from salvor.secrets import mask

_Task = TypeVar("_Task", bound=Callable[..., Any])


def ends_with_exit_code(task: _Task) -> _Task:
    """Turn an error into what to read at 3 a.m. on standard error, and the exit code of its class."""

    @functools.wraps(task)
    def wrapped(*arguments: Any, **named: Any) -> None:
        try:
            task(*arguments, **named)
        except SalvorError as error:
            print(f"\n{show.clean(str(error))}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt as stopped:
            unfinished = "Stopped by you. What was begun may be unfinished; nothing that was live has been removed."
            print(f"\n{str(stopped) or unfinished}", file=sys.stderr)
            print("HINT: the same command again goes on from here", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the reader left; nothing more can be said
            sys.exit(141)
        except Exception as error:  # noqa: BLE001 - the last net: words for the operator, the story to a file
            sys.exit(_unexpected(error))

    return wrapped  # type: ignore[return-value]


def _unexpected(error: Exception) -> int:
    """An error that nobody foresaw: its story goes to a file (600), and the words to the operator."""
    text = mask("".join(traceback.format_exception(error)))
    try:
        file, path = tempfile.mkstemp(prefix="salvor-error-", suffix=".txt")
        with os.fdopen(file, "w", encoding="utf-8", errors="backslashreplace") as story:
            story.write(text)
    except OSError:
        path = "what follows"
        print(text, file=sys.stderr)
    print(f"\nSalvor met an error of its own: {type(error).__name__}: {show.clean(str(error))}", file=sys.stderr)
    print(
        "Safe now: nothing that was live has been removed; each change is journalled before it is made.",
        file=sys.stderr,
    )
    print(f"HINT: the same command again goes on from here; the whole story is in {path}", file=sys.stderr)
    return 1
