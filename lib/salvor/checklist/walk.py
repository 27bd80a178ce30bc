"""`inv checklist`: automatic items are run, people are asked the others, and each answer is on disk before the next.

An interrupted walk goes on where it was. Without anybody at the terminal the automatic items are run, and what is left
for people is said.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from salvor import clock, clone, inventory, shell, show
from salvor.checklist import answers, form, paper
from salvor.checklist.answers import PURPOSE, Answers
from salvor.checklist.form import Checklist, Item
from salvor.errors import CannotError, NotProvenError, OutcomeUnknownError, SalvorError
from salvor.incident import new_id
from salvor.journal import Journal, evidence, lock, ssh_signature
from salvor.journal.folders import incidents_folder, operator
from salvor.plain import amount, one_line
from salvor.schedule.entry import line as typed_line
from salvor.show import Shown, shortest

_WARNS = 8
"""The exit code of a check that warns, see `salvor.errors`."""
_LINES = 15
_WORDS = {"yes": "yes", "y": "yes", "no": "no", "n": "no", "na": "not applicable", "n/a": "not applicable"}


def listing(platform: str, shown: Shown) -> None:
    """The checklists, and when each was walked through last."""
    rows = []
    for name in form.names():
        book = form.load(name)
        last = next(answers.newest_first(platform, name), None)
        told = "never" if last is None else f"{last.begun:%Y-%m-%d %H:%M} UTC"
        state = (
            ""
            if last is None
            else last.summary
            if last.closed
            else f"open; {amount(len(last.left(book)), 'item')} left"
        )
        if isinstance(shown, show.Json):
            shown.write("checklist", checklist=name, title=book.title, last=last.begun if last else None, state=state)
        rows.append((name, clock.write_duration(book.every), told, state))
    shown.lines(show.table(("checklist", "every", "last", ""), rows))


def walk(name: str, platform: str, shown: Shown) -> None:
    """Go through a checklist, or go on with it. Raises NotProvenError when an item is to mend, CannotError when items
    wait for a person and nobody is there.
    """
    book = form.load(name)
    inventory.load(platform)
    with _opened(book, platform, shown) as opened:
        _say_where_it_is(book, answers.tell(opened.folder, opened.lines), shown)
        for item in [one for one in answers.tell(opened.folder, opened.lines).left(book) if one.run]:
            _run(item, platform, opened, shown)
        manual = [one for one in answers.tell(opened.folder, opened.lines).left(book) if one.ask]
        if manual and not isinstance(shown, show.Json) and sys.stdin.isatty():
            for number, item in enumerate(manual, 1):
                _ask(item, f"{number} of {len(manual)}", opened, shown)
            manual = []
        if not manual:
            opened.append("closed", result=answers.tell(opened.folder, opened.lines).summary)
        seen = answers.tell(opened.folder, opened.lines)
    _finish(book, seen, shown)
    _end(seen, manual, platform, name)


@contextmanager
def _opened(book: Checklist, platform: str, shown: Shown) -> Iterator[Journal]:
    """The journal of the walk that is open, or of a new one. Raises HeldError when somebody goes through it now."""
    incidents, by, mirror = incidents_folder(), operator(), os.environ.get("SALVOR_MIRROR")
    with lock.hold(f"checklist-{platform}-{book.name}", incidents, by=by, incident=f"checklist {book.name}"):
        last = next(answers.newest_first(platform, book.name), None)
        if last is not None and last.closed is None:
            with Journal.open(last.folder, by=by, mirror=mirror, tell=shown.tell) as opened:
                if clock.age(last.begun).total_seconds() <= book.every:
                    opened.append("resumed", where=socket.gethostname())
                    yield opened
                    return
                opened.append("closed", result=f"left open; {last.summary}")
            shown.tell(f"{last.folder.name} was left open; this is a new one.")
        new = new_id(book.name)
        with Journal.create(
            incidents / new,
            by=by,
            mirror=mirror,
            tell=shown.tell,
            incident=new,
            platform=platform,
            service=book.name,
            title=book.title,
            purpose=PURPOSE,
            runbook=book.name,
            systems=[],
            wish={},
            detected_at=clock.write_time(clock.now()),
            failed_at=None,
            targets={},
        ) as opened:
            yield opened


def _say_where_it_is(book: Checklist, seen: Answers, shown: Shown) -> None:
    done = len(book.items) - len(seen.left(book))
    shown.tell(f"{book.title} of {seen.platform}: {done} of {len(book.items)} items are done. {seen.folder.name}")


def _run(item: Item, platform: str, opened: Journal, shown: Shown) -> None:
    """Run an automatic item; what its command ended with is its outcome."""
    words = (
        item.run if any(word.startswith("--platform=") for word in item.run) else (*item.run, f"--platform={platform}")
    )
    shown.tell(f"  -> {item.name}: inv {typed_line(words)}")
    begun = clock.monotonic()
    try:
        argv = [sys.executable, "-m", "invoke", *words]
        done = shell.local().run(argv, deadline=item.within, folder=str(clone.root()), check=False)
        outcome = {0: "passed", _WARNS: "warned"}.get(done.exit_code, "failed")
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        if len(said) > _LINES:  # checks say the worst first, errors stand last
            said[_LINES // 2 : -(_LINES // 2)] = ["..."]
        exit_code: int | None = done.exit_code
    except (OutcomeUnknownError, CannotError) as error:
        outcome, said, exit_code = "unknown", str(error).splitlines(), None
    note = "\n".join(one_line(line, most=300) for line in said)
    seconds = round(clock.monotonic() - begun, 3)
    opened.append(
        "item",
        item=item.name,
        text=item.text,
        outcome=outcome,
        note=note,
        run=words,
        exit_code=exit_code,
        seconds=seconds,
    )
    _show(item, outcome, "" if outcome == "passed" else note, shown)


def _ask(item: Item, which: str, opened: Journal, shown: Shown) -> None:
    """Ask a person; `no` needs a note."""
    shown.tell(f"\n{which}: {item.ask}")
    if item.look:
        shown.tell(f"  {item.look}")
    outcome = ""
    while not outcome:
        outcome = _WORDS.get(_typed("  yes, no or na (not applicable): ").lower(), "")
    note = _typed("  Note (nothing to say: Enter): " if outcome != "no" else "  What is wrong, and who mends it: ")
    while outcome == "no" and not note:
        note = _typed("  What is wrong, and who mends it: ")
    opened.append("item", item=item.name, text=item.text, outcome=outcome, note=note)
    _show(item, outcome, "", shown)


def _typed(question: str) -> str:
    """What was typed. Raises CannotError at the end of the input: nobody is there any more."""
    try:
        return input(question).strip()
    except EOFError as error:
        raise CannotError(
            "Nobody answers any more.", safe="every answer so far is kept", hint="the same command again goes on"
        ) from error


def _show(item: Item, outcome: str, note: str, shown: Shown) -> None:
    if isinstance(shown, show.Json):
        shown.write("item", item=item.name, text=item.text, outcome=outcome, note=note)
        return
    shown.lines([f"  {outcome:8}{show.clean(item.name)}: {show.clean(item.text)}"])
    shown.lines(f"            {show.clean(line)}" for line in note.splitlines())


def _finish(book: Checklist, seen: Answers, shown: Shown) -> None:
    """The page; and when it is closed, the seal, where a key is configured. What cannot be made stops nothing."""
    if seen.closed:
        try:
            if key := ssh_signature.configured_key(""):
                evidence.sign(seen.folder, key)
        except SalvorError as error:
            shown.tell(f"owed: the signature: {error.what}")
    problem = paper.make(book, seen)
    shown.tell(f"owed: {problem}" if problem else f"  the page: {shortest(seen.folder / paper.PAGE)}")


def _end(seen: Answers, manual: list[Item], platform: str, name: str) -> None:
    again = f"inv checklist {name} --platform={platform}"
    wait = "waits" if len(manual) == 1 else "wait"
    left = f"{amount(len(manual), 'item')} {wait} for a person: {', '.join(item.name for item in manual)}"
    if seen.bad:
        raise NotProvenError(
            f"To mend: {', '.join(f'{answer.item} ({answer.outcome})' for answer in seen.bad)}."
            + (f" And {left}." if manual else ""),
            safe="every answer is written down",
            hint=f"at a terminal: {again}" if manual else f"mend it, then: {again}",
        )
    if manual:
        raise CannotError(f"{left}.", safe="every answer so far is written down", hint=f"at a terminal: {again}")
