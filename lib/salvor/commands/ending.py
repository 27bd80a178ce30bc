"""How a task ends: with the exit code of its error's class, and on standard error what to read at 3 a.m."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from salvor import show
from salvor.durable import NO_DISK
from salvor.errors import STOPPED, CannotError, SalvorError
from salvor.secrets import mask

_Task = TypeVar("_Task", bound=Callable[..., Any])
_SAFE = "nothing that was live has been removed; each change is journalled before it is made"


def ends_with_exit_code(task: _Task) -> _Task:
    """Turn an error into what to read at 3 a.m. on standard error, and the exit code of its class."""

    @functools.wraps(task)
    def wrapped(*arguments: Any, **named: Any) -> None:
        _open_what_was_closed()
        try:
            with _stopped_in_order():
                task(*arguments, **named)
            sys.stdout.flush()
        except SalvorError as error:
            print(f"\n{show.clean(str(error))}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt as stopped:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more ends at once, without a traceback
            told = str(stopped) or STOPPED
            print(f"\n{told}", file=sys.stderr)
            if "HINT: " not in told:
                print("HINT: the same command again goes on from here", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(141)  # the reader left
        except PermissionError as error:
            sys.exit(_not_permitted(error) if error.filename else _unexpected(error))
        except OSError as error:
            sys.exit(_not_shown(error) if error.errno in NO_DISK and _takes_nothing() else _unexpected(error))
        except Exception as error:  # noqa: BLE001 - the last net: words for the operator, the story to a file
            sys.exit(_unexpected(error))
        finally:
            _drop_what_is_not_taken()

    return wrapped  # type: ignore[return-value]


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """SIGTERM, and a terminal that hangs up, stop what the block does as Ctrl-C does: a rehearsal takes its copy away.
    A second SIGTERM ends at once; a terminal hangs up twice, and where nohup says so, it does not matter.
    """
    numbers = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_IGN}

    def stop(number: int, frame: object) -> None:
        signal.signal(number, numbers[signal.Signals(number)])
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _open_what_was_closed() -> None:
    """Whoever called us may have closed the standard streams, which are None then: nothing is read, or shown. What
    standard error does not take is lost, and changes neither what is done nor the exit code.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as we run
    sys.stderr = show.unfailing_stream(sys.stderr)


def _drop_what_is_not_taken() -> None:
    """Python would try standard output once more at its end, and change the exit code."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as we run


def _not_permitted(error: PermissionError) -> int:
    """We are not who may read or write it: the wrong account, or the wrong owner of a folder on the way."""
    path = str(error.filename)
    return _cannot(
        f"{path}: {error.strerror}.", f"see who may on the way there, and who you are: namei -l {shlex.quote(path)}; id"
    )


def _not_shown(error: OSError) -> int:
    """The disk that the output was redirected to takes no more of it."""
    return _cannot(
        f"Standard output takes nothing: {error.strerror}.",
        "the same command again goes on from here; let it write to the terminal, or to another disk",
    )


def _takes_nothing() -> bool:
    """Whether standard output takes nothing."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _cannot(what: str, hint: str) -> int:
    told = CannotError(what, safe=_SAFE, hint=hint)
    print(f"\n{show.clean(str(told))}", file=sys.stderr)
    return told.exit_code


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
    print(f"Safe now: {_SAFE}.", file=sys.stderr)
    print(f"HINT: the same command again goes on from here; the whole story is in {path}", file=sys.stderr)
    return 1
