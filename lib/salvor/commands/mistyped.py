"""What was typed behind `inv`, read before invoke reads it: a mistake is named with what was meant; nothing is done."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from invoke.exceptions import ParseError
from invoke.parser import Parser
from invoke.program import Program

from salvor.commands.everything import namespace
from salvor.errors import UsageError

_INCIDENT = re.compile(r"\d{8}T\d{6}Z-\S+")


def refuse(words: Sequence[str]) -> None:
    """End with exit code 2 when `words` are no commands and options of ours, or an option is empty."""
    if mistake := find(words):
        from salvor.commands.ending import ends_with_exit_code

        def end() -> None:
            raise mistake

        ends_with_exit_code(end)()


def find(words: Sequence[str]) -> UsageError | None:
    """The first mistake in what follows `inv`; None: there is none.

    An empty option is one: a variable of the shell that is not set must not mean every service, or the newest state.
    """
    core = Program().initial_context
    typed = list(Parser(initial=core, ignore_unknown=True).parse_argv(list(words)).unparsed)
    if not typed:
        return None
    try:
        tasks = Parser(initial=core, contexts=namespace.to_contexts()).parse_argv(typed)
    except ParseError as error:
        return _in_words(error, typed)
    options = ((flag, option) for task in tasks for flag, option in task.flags.items() if flag.startswith("--"))
    if empty := next((flag for flag, option in options if option.value in ("", [""]) and option.got_value), None):
        return _mistake(f"{empty}= is empty.", "leave it out, or say which; was it a variable that is not set?")
    return None


def _in_words(error: ParseError, typed: Sequence[str]) -> UsageError:
    """Invoke's words in ours, with what was meant."""
    said = str(error)
    task, flags = (error.context.name or "", error.context.flags) if error.context else ("", {})
    more = f"inv --help {task} tells what it takes" if task else "inv --list names the commands"
    if unknown := re.fullmatch(r"No idea what '(.*)' is!", said, re.DOTALL):
        word = unknown[1]
        if not task:
            if word.startswith("-"):
                return _mistake(f"There is no inv {word}.", "options follow the command: inv restore --service=NAME")
            names = [name for context in namespace.to_contexts() for name in (context.name or "", *context.aliases)]
            return _mistake(f"There is no inv {word}.", _meant("inv ", word, names) or more)
        options = list(flags)
        if word.startswith("-"):
            if word.split("=")[0] == "--service" and "--incident" in options:
                more = f"inv {task} --incident=ID; inv incidents lists them"
            return _mistake(f"inv {task} has no option {word}.", _meant("", word, options) or more)
        option = "--incident" if _INCIDENT.fullmatch(word) else "--service"
        lacks = option in options and not any(each.split("=")[0] == option for each in typed)
        return _mistake(f"inv {task} takes no {word!r}.", f"inv {task} {option}={word}" if lacks else more)
    if lacking := re.fullmatch(r"Flag <Argument: ([\w-]+).*> needed value and was not given one!", said):
        return _mistake(f"--{lacking[1]} needs a value.", f"--{lacking[1]}=VALUE; {more}")
    if lacking := re.fullmatch(r".* did not receive required positional arguments: (.*)", said):
        return _mistake(f"inv {task} needs {lacking[1].replace(chr(39), '').upper()}.", more)
    return _mistake(said, more)


def _meant(before: str, word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {before}{close[0]}?" if close else ""


def _mistake(what: str, hint: str) -> UsageError:
    return UsageError(what, safe="nothing was changed", hint=hint)
