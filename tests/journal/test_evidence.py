import itertools
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from salvor import clock
from salvor.change import Finding, Level
from salvor.errors import CannotError
from salvor.journal import FILE, Journal
from salvor.journal.evidence import PUBLIC_KEY, SEAL, SIGNATURE, check, sign
from salvor.journal.line import digest, encode

INCIDENT = "20261121T003300Z-orders-3f2a"
DOCUMENT = Path(__file__).parents[2] / "docs" / "evidence.md"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys of `kim` and `eve`, and `allowed`, which names kim."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("kim", "eve"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(argv, check=True, timeout=20)
    allow(folder / "allowed", folder / "kim.pub")
    return folder


def allow(allowed: Path, public_key: Path, options: str = 'namespaces="salvor-journal"') -> Path:
    allowed.write_text(f"kim@example.com {options} {public_key.read_text()}")
    return allowed


def write(folder: Path) -> Path:
    with Journal.create(folder, by="kim", service="orders") as journal:
        journal.append("step", step="assess", phase="begun")
        journal.append("note", text='a "quoted" text, {braces} and 한글')
        journal.append("closed", result="done")
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return write(tmp_path / INCIDENT)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A closed and signed journal that no test changes."""
    folder = write(tmp_path_factory.mktemp("sealed") / INCIDENT)
    sign(folder, keys / "kim")
    return folder


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is not Level.PASS]


def named(findings: list[Finding]) -> set[int]:
    """The numbers of the lines that findings name."""
    return {int(finding.figure.split()[1]) for finding in wrong(findings) if finding.figure.startswith("line ")}


def edited(sealed: Path, folder: Path, content: bytes) -> list[Finding]:
    """What is found in a copy of a sealed journal with other content, apart from its signature."""
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(content)
    shutil.copy(sealed / SEAL, folder)
    return [finding for finding in check(folder) if finding.check != "signature"]


def test_a_signed_journal_passes(sealed: Path, keys: Path) -> None:
    findings = check(sealed, keys / "allowed")
    assert wrong(findings) == []
    assert [finding.check for finding in findings] == ["chain", "seal", "signature"]
    assert findings[2].figure == "kim@example.com"
    lines = (sealed / FILE).read_bytes().splitlines()
    assert (sealed / SEAL).read_text() == f"4 {digest(lines[-1])}\n"
    assert (sealed / PUBLIC_KEY).read_text().split() == (keys / "kim.pub").read_text().split()[:2]
    assert {oct((sealed / name).stat().st_mode & 0o777) for name in (SEAL, SIGNATURE, PUBLIC_KEY)} == {"0o600"}


# -------------------------------------------------------------------------------------------------------------- edits


def test_any_byte_that_is_changed_is_found_and_its_line_named(sealed: Path, tmp_path: Path) -> None:
    content = (sealed / FILE).read_bytes()
    line = 1
    for position, byte in enumerate(content):
        other = byte ^ (1 << (position % 8))
        findings = edited(sealed, tmp_path / INCIDENT, content[:position] + bytes([other]) + content[position + 1 :])
        assert any(finding.level is Level.FAIL for finding in findings), (position, other)
        assert named(findings) & {line, line + 1}, (position, other)
        line += byte == ord("\n")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_is_found(sealed: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = (sealed / FILE).read_bytes()
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(len(content), begin + 300)))
    instead = data.draw(st.binary(max_size=40) | st.sampled_from([b"\n", b"\0", b" ", b"{}\n"]))
    after = content[:begin] + instead + content[end:]
    assume(after != content)
    findings = edited(sealed, tmp_path / INCIDENT, after)
    assert any(finding.level is Level.FAIL for finding in findings)
    line = content.count(b"\n", 0, begin) + 1
    assert named(findings) and min(named(findings)) in (line - 1, line, line + 1)


def test_any_other_order_of_any_lines_is_found(sealed: Path, tmp_path: Path) -> None:
    lines = (sealed / FILE).read_bytes().splitlines(keepends=True)
    tried = 0
    for count in range(len(lines) + 1):
        for order in itertools.permutations(lines, count):
            if list(order) == lines:
                continue
            findings = edited(sealed, tmp_path / INCIDENT, b"".join(order))
            assert any(finding.level is Level.FAIL for finding in findings), [lines.index(line) for line in order]
            first = next(
                (n for n, (one, two) in enumerate(zip(order, lines, strict=False), 1) if one != two), count + 1
            )
            assert first in named(findings)
            tried += 1
    assert tried == 64, "every removal, swap and cut"


def test_lines_that_are_numbered_and_chained_anew_are_found_by_the_seal(sealed: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (sealed / FILE).read_bytes().splitlines()]
    lines[2]["text"] = "nothing happened"
    for before, line in itertools.pairwise(lines):
        line["previous"] = digest(encode(before))
    findings = edited(sealed, tmp_path / INCIDENT, b"".join(encode(line) + b"\n" for line in lines))
    assert [(finding.check, finding.level, finding.figure) for finding in findings] == [
        ("chain", Level.PASS, "4 lines"),
        ("seal", Level.FAIL, "line 4"),
    ]


@pytest.mark.parametrize("number", [1, 3, 4, "2", True, None])
def test_a_number_that_does_not_follow_is_found_even_in_a_good_chain(tmp_path: Path, number: object) -> None:
    with Journal.create(tmp_path / INCIDENT, by="kim"):
        pass
    path = tmp_path / INCIDENT / FILE
    first = path.read_bytes()
    path.write_bytes(first + encode({"n": number, "kind": "note", "previous": digest(first[:-1])}) + b"\n")
    assert [f.figure for f in check(tmp_path / INCIDENT) if f.level is Level.FAIL] == ["line 2"]


def test_an_open_journal_says_what_cannot_be_told(tmp_path: Path) -> None:
    with Journal.create(tmp_path / INCIDENT, by="kim"):
        pass
    assert [(finding.check, finding.level) for finding in check(tmp_path / INCIDENT)] == [
        ("chain", Level.PASS),
        ("seal", Level.UNKNOWN),
    ]


def test_closed_and_not_signed_is_a_warning(journal: Path) -> None:
    assert [(finding.check, finding.level) for finding in wrong(check(journal))] == [("seal", Level.WARN)]


def test_a_torn_tail_is_a_warning_in_an_open_journal_and_an_edit_in_a_sealed_one(journal: Path, keys: Path) -> None:
    def tear() -> None:
        with (journal / FILE).open("ab") as file:
            file.write(b'{"n":')

    tear()
    assert [(f.level, f.figure) for f in check(journal) if f.check == "tail"] == [(Level.WARN, "line 5")]
    with pytest.raises(CannotError, match="part of a line"):
        sign(journal, keys / "kim")
    Journal.open(journal, by="kim").close()
    sign(journal, keys / "kim")
    tear()
    assert [(f.level, f.figure) for f in check(journal) if f.check == "tail"] == [(Level.FAIL, "line 6")]


def test_a_journal_that_is_not_there(tmp_path: Path) -> None:
    for act in (lambda: check(tmp_path / "none"), lambda: sign(tmp_path / "none", tmp_path / "key")):
        with pytest.raises(CannotError, match="There is no journal"):
            act()


def test_a_damaged_journal_is_not_signed(journal: Path, keys: Path) -> None:
    lines = (journal / FILE).read_bytes().splitlines(keepends=True)
    (journal / FILE).write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(CannotError, match="line 2") as raised:
        sign(journal, keys / "kim")
    assert raised.value.hint == f"inv incident.check --incident={INCIDENT}"
    (journal / FILE).write_bytes(b"".join(lines) + b'{"n":')
    with pytest.raises(CannotError, match="a part of a line at its end"):
        sign(journal, keys / "kim")
    assert not (journal / SEAL).exists()


# --------------------------------------------------------------------------------------------------------- signatures


def signature(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings if finding.check == "signature"]


def test_lines_added_after_the_signature_are_named_and_can_be_signed(journal: Path, keys: Path) -> None:
    sign(journal, keys / "kim")
    with Journal.open(journal, by="kim") as opened:
        opened.append("discarded")
    findings = wrong(check(journal, keys / "allowed"))
    assert [(finding.check, finding.level, finding.figure) for finding in findings] == [("seal", Level.WARN, "line 5")]
    sign(journal, keys / "kim")
    assert wrong(check(journal, keys / "allowed")) == []


def test_a_signer_who_is_not_allowed_is_found(journal: Path, keys: Path) -> None:
    sign(journal, keys / "eve")
    assert signature(check(journal, keys / "allowed")) == [Level.FAIL]
    assert signature(check(journal)) == [Level.UNKNOWN], "a good signature, by a key that nobody has vouched for"


def test_a_key_allowed_for_something_else_is_found(sealed: Path, keys: Path, tmp_path: Path) -> None:
    assert signature(check(sealed, allow(tmp_path / "allowed", keys / "kim.pub", 'namespaces="git"'))) == [Level.FAIL]


def test_a_key_that_expired_after_it_signed_is_good(tmp_path: Path, keys: Path) -> None:
    moment = datetime(2026, 11, 20, 3, 12, tzinfo=UTC)
    with clock.use(lambda: moment):
        folder = write(tmp_path / INCIDENT)
    sign(folder, keys / "kim")
    after = allow(tmp_path / "after", keys / "kim.pub", 'valid-before="20261120031201Z"')
    before = allow(tmp_path / "before", keys / "kim.pub", 'valid-before="20261120031159Z"')
    assert signature(check(folder, after)) == [Level.PASS]
    assert signature(check(folder, before)) == [Level.FAIL]


@pytest.mark.parametrize("name", [SEAL, SIGNATURE, PUBLIC_KEY])
def test_any_byte_changed_in_what_was_signed_is_found(sealed: Path, keys: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sealed, tmp_path / INCIDENT)
    content = (sealed / name).read_bytes()
    telling = [place for place, byte in enumerate(content[:-1]) if byte != ord("\n")]  # the armour's lines say nothing
    for position in random.sample(telling, 12):
        changed = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        (folder / name).write_bytes(changed)
        assert any(finding.level is Level.FAIL for finding in check(folder, keys / "allowed")), position


@pytest.mark.parametrize("name", [SEAL, SIGNATURE])
def test_a_seal_that_was_removed_is_found(sealed: Path, keys: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sealed, tmp_path / INCIDENT)
    (folder / name).unlink()
    assert any(finding.level is Level.FAIL for finding in check(folder, keys / "allowed"))


def test_a_seal_of_another_journal_does_not_fit(sealed: Path, keys: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other")
    for name in (SEAL, SIGNATURE, PUBLIC_KEY):
        shutil.copy(sealed / name, other)
    assert {finding.check for finding in wrong(check(other, keys / "allowed"))} == {"seal"}


def test_a_list_of_signers_that_is_not_there(sealed: Path, tmp_path: Path) -> None:
    findings = wrong(check(sealed, tmp_path / "none"))
    assert [(finding.check, finding.level) for finding in findings] == [("signature", Level.FAIL)]
    assert "No such file" in findings[0].detail


def test_a_key_with_a_passphrase_is_a_clear_word_and_asks_nobody(journal: Path, tmp_path: Path) -> None:
    key = tmp_path / "locked key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", str(key)], check=True, timeout=20)
    for path in (key, tmp_path / "none"):
        with pytest.raises(CannotError, match="could not be signed") as raised:
            sign(journal, path)
        assert "ssh-add" in raised.value.hint
    assert not (journal / SEAL).exists()


def test_the_agent_signs_for_a_public_key(
    journal: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        add = ["ssh-add", "-q", str(keys / "kim")]
        retry = 'for _ in 1 2 3 4 5 6 7 8 9; do "$@" 2>/dev/null && exit; sleep 0.1; done; exit 1'
        subprocess.run(["sh", "-c", retry, "sh", *add], check=True, timeout=20)
        public_key = shutil.copy(keys / "kim.pub", tmp_path / "kim.pub")
        sign(journal, Path(public_key))
    finally:
        agent.terminate()
        agent.wait(10)
    assert wrong(check(journal, keys / "allowed")) == []


# ------------------------------------------------------------------------------------------------------- the document


def documented(heading: str) -> str:
    section = DOCUMENT.read_text().split(f"\n## {heading}")[1].split("\n## ")[0]
    found = re.search(r"```sh\n(.*?)```", section, re.S)
    assert found
    return found[1]


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder.parent), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_documented_commands_pass_a_good_journal(sealed: Path, keys: Path) -> None:
    chain = run(documented("1. "), sealed)
    assert (chain.returncode, chain.stderr) == (0, "")
    assert chain.stdout == "The journal is whole, and ends where it was sealed.\n"
    signature = run(documented("2. "), sealed, allowed_signers=str(keys / "allowed"))
    assert signature.returncode == 0
    assert signature.stdout.startswith('Good "salvor-journal" signature for kim@example.com')


def swap(content: bytes) -> bytes:
    one, two, *rest = content.splitlines(keepends=True)
    return b"".join([two, one, *rest])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda content: content.replace("한".encode(), "글".encode()), id="edit"),
        pytest.param(lambda content: content.replace(b"done", b"gone"), id="edit of the last line"),
        pytest.param(lambda content: content.replace(b"braces", b"bra\0ces"), id="zero byte"),
        pytest.param(swap, id="swap"),
        pytest.param(lambda content: b"".join(content.splitlines(keepends=True)[1:]), id="first line removed"),
        pytest.param(lambda content: b"".join(content.splitlines(keepends=True)[:-1]), id="last line removed"),
        pytest.param(lambda content: content[:-1], id="newline removed"),
        pytest.param(lambda content: content + b"{", id="torn"),
        pytest.param(lambda content: content + b"{}\n", id="added"),
        pytest.param(lambda content: b"\n" + content, id="empty line"),
        pytest.param(lambda content: b"", id="empty"),
    ],
)
def test_the_documented_commands_find_a_bad_journal(
    sealed: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    folder = shutil.copytree(sealed, tmp_path / INCIDENT)
    content = (sealed / FILE).read_bytes()
    assert change(content) != content
    (folder / FILE).write_bytes(change(content))
    chain = run(documented("1. "), folder)
    assert chain.returncode
    assert "whole" not in chain.stdout


def test_the_documented_commands_find_a_bad_signature(sealed: Path, keys: Path, tmp_path: Path) -> None:
    script = documented("2. ")
    eve = allow(tmp_path / "eve", keys / "eve.pub")
    assert run(script, sealed, allowed_signers=str(eve)).returncode
    folder = shutil.copytree(sealed, tmp_path / INCIDENT)
    (folder / SEAL).write_text((sealed / SEAL).read_text().replace("4 ", "3 "))
    assert run(script, folder, allowed_signers=str(keys / "allowed")).returncode


def test_the_documented_commands_compare_with_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    folder = tmp_path / INCIDENT
    with Journal.create(folder, by="kim", mirror=str(tmp_path / "mirror")) as journal:
        journal.append("note", text="one")
    mirror = tmp_path / "mirror" / INCIDENT
    same = run(documented("3. "), folder, mirror=str(mirror))
    assert (same.returncode, same.stdout) == (0, "The mirror holds the same lines.\n")
    assert b"".join(path.read_bytes() for path in sorted(mirror.iterdir())) == (folder / FILE).read_bytes()
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    (folder / FILE).write_bytes(lines[0])
    cut = run(documented("3. "), folder, mirror=str(mirror))
    assert cut.returncode
    assert "> 000002-" in cut.stdout
