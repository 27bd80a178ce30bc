"""Proof of a staged tree before it is promoted: what restic restored, against what it says that it backed up.

What restic 0.14 restores, tried: content, modes with set-user-ID and sticky bits, owners, times to the
nanosecond, symbolic and hard links, extended attributes and ACLs, FIFOs, devices, empty folders, names in any bytes.
Its traps: `--verify` reads the content of files only, so everything else is compared here; sockets are left out (the
programs make them anew); up to 0.15 it spoils link targets that are no UTF-8 already when it backs them up; up to 0.14
holes of sparse files come back as zeros; as another user than root it leaves owners as they come, and says nothing.
A symbolic link or a FIFO with several names comes back as several, and a symbolic link without its extended attributes.
Those are in none of its listings: for them its own word, that there was no error, has to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.change import Finding, Level
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.files import census, environment, snapshot
from salvor.files.look import Beside, Look
from salvor.files.manifest import Manifest, Node, Nodes
from salvor.files.said import as_json
from salvor.plain import amount, one_line
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.systems.files import Files

_SHOWN = 5
_MOST_SETTINGS = 1024 * 1024
_UNITS = {2 * 10**9: "2 s", 10**9: "the second", 10**7: "10 ms", 10**3: "1 µs", 100: "100 ns"}
"""To how many nanoseconds file systems keep times: FAT, ext3 and ext4 with small inodes, exFAT, UDF, NTFS."""


def of_snapshot(system: Files, look: Look, wish: Wish) -> Iterator[Finding]:
    """A tree that restic restored: every entry as it was backed up, and fresh enough."""
    mine = system.place.mine(look)
    if mine is None or not mine.whole:
        yield Finding(system.name, "staged", Level.FAIL, detail="there is no whole stage of this incident")
        return
    marker = mine.marker
    repository = system.repository(str(marker["repository"]))
    should = system.manifests.of(repository, str(marker["snapshot"]), str(marker["path"]))
    should.ask_ahead(alone=bool(marker.get("alone")), size=marker.get("size"))  # or it was, while restic restored
    entries = list(census.take(system.shell, system.place.staged))
    yield _content(system.name, mine, should.nodes, entries)
    yield _entries(system.name, mine, should.nodes, entries, by_root=look.is_root)
    yield from _hard_links(system.name, mine, should, entries)
    if should.has_links() or any(one.kind == "l" for one in entries):
        yield _links(system.name, mine, should, entries)
    yield from settings(system, look, mine)
    taken = marker.get("taken")
    yield freshness(system.name, clock.read_time(taken) if taken else None, mine, wish)


def _content(subject: str, mine: Beside, nodes: Nodes, entries: list[census.Entry]) -> Finding:
    """What restic read back when it had restored it, and whether anything was touched since."""
    files = sum(1 for each in nodes.values() for node in each if node.kind == "f")
    read_back, sealed = int(mine.marker.get("read_back", -1)), float(mine.marker["sealed"])
    touched = [one for one in entries if one.path and one.changed > sealed * 1e9]
    detail = "restic read every file back and compared it with the checksums of its pieces; untouched since"
    if touched:
        detail = f"touched since restic proved it: {_listed(as_json(one.path) for one in touched)}"
    elif read_back not in (-1, files):
        detail = f"restic read {amount(read_back, 'file')} back"
    level = Level.PASS if not touched and read_back in (-1, files) else Level.FAIL
    return Finding(subject, "content", level, amount(files, "file"), "", detail, mine.tree)


def _entries(subject: str, mine: Beside, nodes: Nodes, entries: list[census.Entry], *, by_root: bool) -> Finding:
    """Names, kinds, sizes, modes, owners and times."""
    unit = _unit_of_times(entries)
    is_coarse = any(node.modified % unit for each in nodes.values() for node in each)
    if is_coarse:
        nodes = {
            name: [node._replace(modified=node.modified // unit * unit) for node in each]
            for name, each in nodes.items()
        }
    left = {name: list(each) for name, each in nodes.items()}
    wrong: list[str] = []
    owners = 0
    for entry in entries:
        name = as_json(entry.path)
        candidates = left.get(name, [])
        if len(candidates) == 1 and (entry[1:7] == candidates[0] or not _differs(entry, candidates[0])):
            del left[name]
            continue
        same = [node for node in candidates if _differs(entry, node) in ("", "owner")]
        if same:
            candidates.remove(same[0])
            owners += _differs(entry, same[0]) == "owner"
        elif candidates:
            wrong.append(f"{name or '.'} ({_differs(entry, candidates.pop())})")
        else:
            wrong.append(f"{name or '.'} (not in the backup)")
    wrong += [f"{name or '.'} (missing)" for name, each in left.items() for _ in each]
    total, level, detail = sum(map(len, nodes.values())), Level.PASS, "names, kinds, sizes, modes, owners, times"
    detail += f" (to {_UNITS[unit]}: its disk keeps no more)" if is_coarse else ""
    if wrong or (owners and by_root):
        level, detail = Level.FAIL, _listed(wrong) or f"{owners} have another owner"
    elif owners:
        level, detail = Level.WARN, f"{owners} have another owner: only root can give files to others"
    return Finding(
        subject, "as it was backed up", level, f"{len(wrong) + owners} of {total} differ", "0", detail, mine.tree
    )


def _unit_of_times(entries: list[census.Entry]) -> int:
    """The nanoseconds to which their disk keeps times: those of which all are whole, also when each was changed, which
    the kernel says.
    """
    return next((unit for unit in _UNITS if not any(one.changed % unit or one.modified % unit for one in entries)), 1)


def _differs(entry: census.Entry, node: Node) -> str:
    """In what an entry is not as it should be; `owner` only when nothing else is."""
    if entry.kind != node.kind:
        return "kind"
    if entry.kind == "f" and entry.size != node.size:
        return "size"
    if entry.kind != "l" and entry.mode != node.mode:
        return "mode"
    if entry.modified != node.modified:
        return "time"
    return "owner" if (entry.uid, entry.gid) != (node.uid, node.gid) else ""


def _hard_links(subject: str, mine: Beside, manifest: Manifest, entries: list[census.Entry]) -> Iterator[Finding]:
    """Hard links, by what they spare."""
    names = manifest.size()
    once = sum({one.node: one.size for one in entries if one.kind == "f"}.values())
    if not mine.marker.get("alone"):
        why = "not compared: the snapshot holds more than this tree"
        yield Finding(subject, "hard links", Level.WARN, f"{once} bytes", "", why, mine.tree)
    elif once != names or mine.marker.get("size") != names:
        should = manifest.once
        level = Level.PASS if should == once else Level.FAIL
        yield Finding(subject, "hard links", level, f"{once} bytes", f"{should} bytes", "each counted once", mine.tree)


def _links(subject: str, mine: Beside, manifest: Manifest, entries: list[census.Entry]) -> Finding:
    """Where symbolic links lead. Nodes are in the order of links, but for names that differ only in bytes that are no
    UTF-8.
    """
    path = str(mine.marker["path"])
    should = [name for name, each in manifest.nodes.items() for node in each if node.kind == "l"]
    targets = {
        name: said.removeprefix(f"{path}/{name}" if name else path).removeprefix(" -> ")
        for name, said in zip(should, manifest.links, strict=False)
    }
    found = {as_json(one.path): as_json(one.target) for one in entries if one.kind == "l"}
    wrong = [f"{name} -> {target}" for name, target in found.items() if targets.get(name) != target]
    spoilt = [name for name, target in found.items() if "\ufffd" in target]
    level = Level.FAIL if wrong else Level.WARN if spoilt else Level.PASS
    detail = _listed(wrong)
    if spoilt and not wrong:
        detail = f"restic may have spoilt what is no UTF-8, when it backed it up: {_listed(spoilt)}"
    return Finding(subject, "where links lead", level, f"{len(wrong)} of {len(found)} differ", "0", detail, mine.tree)


def settings(system: Files, look: Look, mine: Beside) -> Iterator[Finding]:
    """For a single file of settings: what going back changes in it, by the names. Values are never shown."""
    if mine.staged is None or mine.staged.is_folder or not environment.is_settings(look.path.rpartition("/")[2]):
        return
    if max(mine.staged.size, look.live.size if look.live else 0) > _MOST_SETTINGS:
        return
    check = "settings, against what is live"
    try:
        before = (system.shell.read(look.path) or "") if look.live else ""
        after = system.shell.read(system.place.staged) or ""
    except CannotError as error:
        yield Finding(system.name, check, Level.WARN, "not compared", detail=error.what, evidence=mine.tree)
        return
    found = environment.compare(before, after)
    yield Finding(system.name, check, Level.PASS, found.figure, detail=found.detail, evidence=mine.tree)


def _listed(names: Any) -> str:
    found = list(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return one_line(", ".join(found[:_SHOWN])) + more


def freshness(subject: str, taken: datetime | None, staged: Beside, wish: Wish) -> Finding:
    """How old what is staged is, against what may be lost."""
    limit = clock.write_duration(wish.rpo)
    if taken is None:
        why = "it does not say of which moment it is"
        return Finding(subject, "freshness", Level.WARN, "not known", limit, why, staged.tree)
    age = (wish.counts_until - taken).total_seconds()
    asked = wish.at is not None or wish.source != "latest"
    figure = f"of {clock.write_time(taken)}, {clock.write_duration(age)} old"
    detail = "as asked for" if asked else "what was written since is not in it"
    level = Level.PASS if asked or age <= wish.rpo else Level.WARN
    return Finding(subject, "freshness", level, figure, limit, detail, staged.tree)


def changed(system: Files, path: str) -> int:
    """How many files of the newest backup are missing at `path`, or have another size or time there.

    Newest: but for a tree that an incident restored, and that was not backed up since. That is compared with what it
    was restored from. Raises OutcomeUnknownError when no repository answers, or none has a snapshot: that says nothing
    of the tree.
    """
    look = system.place.look()
    one = _baseline(system, look, path)
    try:
        manifest = system.manifests.of(system.repository(one["repository"]), one["snapshot"], one["path"])
        nodes = {name: list(each) for name, each in manifest.nodes.items()}
    except CannotError as error:
        raise OutcomeUnknownError(f"It was not compared: {error.what}", hint=error.hint) from error
    for entry in census.take(system.shell, path) if path == system.place.staged or look.live else ():
        if entry.kind == "f":
            candidates = nodes.get(as_json(entry.path), [])
            same = [
                node for node in candidates if node.size == entry.size and _same_time(node.modified, entry.modified)
            ]
            if same:
                candidates.remove(same[0])
    return sum(1 for each in nodes.values() for node in each if node.kind == "f")


def _same_time(backed_up: int, now: int) -> bool:
    """Whether a file's time is that of its backup; what came out of an archive has whole seconds, and what was restored
    has what its disk keeps. In nanoseconds.
    """
    return now == backed_up or any(now == backed_up // unit * unit for unit in _UNITS)


def _baseline(system: Files, look: Look, path: str) -> Mapping[str, str]:
    staged = path == system.place.staged
    incident = system.context.incident if staged else look.origin
    origin = next((one.marker for one in look.beside if one.incident == incident and "snapshot" in one.marker), None)
    if staged and origin:
        return origin
    answers = snapshot.ask_all(system.repositories)
    known = snapshot.of_tree(answers, system.name, look)
    found = [one for one in known if one.is_good] or known
    if origin and (not found or found[0].taken.timestamp() < float(origin["sealed"])):
        return origin
    if not found:
        silent = "; ".join(f"{name}: {said.what}" for name, said in answers.items() if isinstance(said, CannotError))
        raise OutcomeUnknownError(f"{system.name} has no snapshot to compare with. {silent}".strip(), hint="inv backup")
    newest = found[0]
    return {
        "repository": newest.repository,
        "snapshot": newest.id,
        "path": newest.paths[0] if newest.owner else look.path,
    }
