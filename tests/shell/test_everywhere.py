"""Commands on this machine, as another user, and over SSH against a real sshd: the same promises everywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from salvor import running, secrets, shell
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.shell import Shell

from tests.running_here import command_lines, runs
from tests.waiting import until, within

pytestmark = pytest.mark.timeout(60)


def test_a_command_and_what_it_said(there: Shell) -> None:
    result = there.run(["sh", "-c", "echo out; echo err >&2; pwd"])
    assert (result.exit_code, result.stderr) == (0, "err\n")
    assert result.stdout.startswith("out\n")
    assert 0 < result.seconds < 20


@pytest.mark.parametrize(
    "word", ["it's", 'a "b" $HOME `id` \\n', "", "-x", "new\nline", "주문 ✓", "*", "~", "!x", "a;b|c&d"]
)
def test_words_arrive_as_they_are(there: Shell, word: str) -> None:
    assert there.run(["printf", "%s|", word, "end"]).stdout == f"{word}|end|"


def test_a_failure_says_what_where_and_how_to_try_it(there: Shell) -> None:
    with pytest.raises(CommandError, match=r"sh on .* ended with exit code 7: it broke") as failed:
        there.run(["sh", "-c", "echo it broke >&2; exit 7"])
    assert failed.value.exit_code_of_command == 7
    assert failed.value.stderr == "it broke\n"
    assert failed.value.hint.endswith(": sh -c 'echo it broke >&2; exit 7'")
    assert there.run(["sh", "-c", "exit 7"], check=False).exit_code == 7
    assert not there.succeeds(["false"])


def test_a_disk_that_is_full_is_what_a_failure_says_however_much_is_said_after_it(there: Shell) -> None:
    with pytest.raises(CommandError, match=r"1: cat: write error: No space left on device\n") as failed:
        there.run(["sh", "-c", "echo making it >&2; echo x | cat > /dev/full; seq 20 >&2; exit 1"])
    assert failed.value.hint == f"make room on {there.where} (df -h shows where), then the same command again"


def test_a_failure_holds_no_secret(there: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_hidden", None)
    secrets.remember("swordfish-9")
    with pytest.raises(CommandError) as failed:
        there.run(["sh", "-c", "echo swordfish-9 PGPASSWORD=other >&2; exit 7"])
    assert "swordfish-9" not in f"{failed.value} {failed.value.stderr}"
    assert "other" not in f"{failed.value} {failed.value.stderr}"


def test_a_command_that_a_signal_ended(there: Shell) -> None:
    # OpenSSH's client does not tell; the shell between does, as shells do.
    how = r"(was ended by (SIGKILL|a signal|SIGHUP)|ended with exit code 137)"
    with pytest.raises(CommandError, match=rf"sh on .* {how}"):
        there.run(["sh", "-c", "kill -9 $$"])


def test_a_command_that_is_not_there(there: Shell) -> None:
    with pytest.raises(CannotError, match="no-such-program"):
        there.run(["no-such-program"])


def test_standard_input(there: Shell) -> None:
    assert there.run(["cat"], input=b"a\nb").stdout == "a\nb"
    assert there.run(["cat"]).stdout == ""
    large = b"x" * 3_000_000
    assert there.run(["wc", "-c"], input=large).stdout.strip() == "3000000"
    assert within(20, lambda: there.run(["true"], input=large).exit_code) == 0


def test_the_environment_is_seen_by_the_command_alone(there: Shell) -> None:
    value = 'it\'s a "s3cret" $HOME\nof two lines 주문'
    with ThreadPoolExecutor() as pool:
        command = ["sh", "-c", 'sleep 0.7; printf %s "$PLANTED_SECRET"; cat']
        running = pool.submit(there.run, command, environment={"PLANTED_SECRET": value}, input=b"|input")
        seen: list[bytes] = []
        while not (running.done() or any(b"PLANTED_SECRET" in line for line in seen)):
            seen = [b" ".join(words) for words in command_lines().values()]
        assert any(b"PLANTED_SECRET" in line for line in seen)  # the command itself, whose script names the variable
        assert not any(b"s3cret" in line for line in seen)
        assert running.result().stdout == f"{value}|input"


def test_lines_come_as_they_are_said(there: Shell, folder: str) -> None:
    waits = 'echo one; until [ -e "$1" ]; do sleep 0.05; done; echo two; printf three'
    said = there.stream(["sh", "-c", waits, "sh", f"{folder}/go on"], deadline=20)
    assert next(said) == "one"
    there.run(["touch", f"{folder}/go on"])
    assert list(said) == ["two", "three"]


def test_a_stream_that_fails_says_so_at_its_end(there: Shell) -> None:
    said = there.stream(["sh", "-c", "echo one; echo it broke >&2; exit 3"], deadline=10)
    assert next(said) == "one"
    with pytest.raises(CommandError, match="exit code 3: it broke"):
        next(said)


def test_what_comes_quicker_than_it_is_taken_is_all_there(there: Shell) -> None:
    said = there.stream(["seq", "1", "50000"], deadline=30)
    first = [next(said) for _ in range(3)]
    time.sleep(0.5)
    assert [*first, *said] == [str(number) for number in range(1, 50001)]


def slowly(lines: Iterator[str]) -> None:
    for _ in lines:
        time.sleep(0.001)


LONG = {
    "silent": ["sleep", "30"],
    "chatty": ["sh", "-c", "while :; do echo x; done"],
    "closed its output": ["sh", "-c", "exec >&- 2>&-; sleep 30"],
    "ignores signals": ["sh", "-c", "trap '' TERM HUP; sleep 30"],
}


@pytest.mark.parametrize("command", LONG.values(), ids=LONG)
def test_a_deadline_ends_it(there: Shell, command: list[str]) -> None:
    with pytest.raises(OutcomeUnknownError, match=r"did not end within 0.3 s") as late:
        within(6, lambda: there.run(command, deadline=0.3))
    assert "inv assess" in late.value.hint
    if command == LONG["chatty"]:
        with pytest.raises(OutcomeUnknownError):
            within(6, lambda: slowly(there.stream(command, deadline=0.3)))
    assert there.run(["true"]).exit_code == 0


def test_silence_ends_it_where_that_is_asked_for(there: Shell) -> None:
    with pytest.raises(OutcomeUnknownError, match=r"sh on .* said nothing for 0.4 s; it was stopped"):
        within(6, lambda: there.run(["sh", "-c", "echo one; sleep 20"], deadline=20, idle=0.4))
    slow = ["sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.2; done"]
    assert list(there.stream(slow, deadline=20, idle=2)) == ["1", "2", "3", "4"]


def test_what_it_complains_of_can_end_it_while_it_goes_on(there: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.anywhere, "_GLANCE", 0.1)

    def hear(said: str) -> None:
        if "for ever" in said:
            raise CannotError("It would go on for ever.")

    stubborn = ["sh", "-c", "echo one; sleep 0.4; echo for ever >&2; sleep 4713"]
    with pytest.raises(CannotError, match="for ever"):
        within(6, lambda: there.run(stubborn, deadline=20, hear=hear))
    assert until(lambda: not runs(["sleep", "4713"]))
    assert b"".join(there.pieces(["sh", "-c", "sleep 0.3; echo two"], deadline=20, hear=hear)) == b"two\n"


def test_a_folder_to_work_in(there: Shell, folder: str) -> None:
    odd = f'{folder}/-it\'s "odd" $x'
    there.run(["mkdir", "--", odd])
    assert there.run(["pwd"], folder=odd).stdout == f"{odd}\n"
    assert list(there.stream(["pwd"], deadline=10, folder=odd)) == [odd]
    with pytest.raises(CannotError, match="no-such"):
        there.run(["pwd"], folder=f"{folder}/no-such")


def test_output_as_bytes(there: Shell) -> None:
    said = b"".join(
        there.pieces(["sh", "-c", "head -c 3000000 /dev/urandom | tee /dev/stderr 2>/dev/null"], deadline=30)
    )
    assert len(said) == 3_000_000
    assert b"".join(there.pieces(["printf", "\\036\\0a\\036b\\036"], deadline=10)) == b"\x1e\0a\x1eb\x1e"


def test_what_is_given_up_is_ended(there: Shell) -> None:
    mark = f"98762.{os.getpid()}"
    with pytest.raises(OutcomeUnknownError, match="it was stopped"):
        there.run(["sh", "-c", f"trap '' TERM HUP; sleep {mark} | cat; true"], deadline=0.6)
    assert until(lambda: not runs(["sleep", mark]))
    said = there.stream(["sh", "-c", f"echo one; sleep {mark}"], deadline=30)
    assert next(said) == "one"
    said.close()  # type: ignore[attr-defined]
    assert until(lambda: not runs(["sleep", mark]))


def test_what_it_leaves_in_the_background_holds_nobody(there: Shell) -> None:
    result = within(5, lambda: there.run(["sh", "-c", "sleep 8 & echo begun; printf 'and on'"], deadline=7))
    assert result.stdout == "begun\nand on"  # type: ignore[attr-defined]


def test_a_busy_machine_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(descriptor: int, most: int) -> bytes:
        time.sleep(0.2)  # whoever reads gets no turn, and the command has ended long since
        return read(descriptor, most)

    def put_late(self: running.Running, said: str | bytes | None) -> None:
        if said is not None:
            time.sleep(0.2)
        put(self, said)

    read, put = os.read, running.Running._put
    monkeypatch.setattr(os, "read", late)
    monkeypatch.setattr(running.Running, "_put", put_late)
    monkeypatch.setattr(running, "LINGER", 0.05)
    result = shell.local().run(["sh", "-c", "echo one; echo wrong >&2; printf two"], deadline=20)
    assert (result.stdout, result.stderr) == ("one\ntwo", "wrong\n")


def test_a_line_of_ten_megabytes(there: Shell) -> None:
    command = ["sh", "-c", "head -c 10000000 /dev/zero | tr '\\0' x"]
    assert len(there.run(command, deadline=50).stdout) == 10_000_000
    pieces = list(there.stream(command, deadline=50))
    assert sum(map(len, pieces)) == 10_000_000
    assert max(map(len, pieces)) < 2_000_000


def test_output_that_is_no_text(there: Shell) -> None:
    said = there.run(["printf", "\\377\\376a\\0b\\nc"]).stdout
    assert said == "��a\0b\nc"
    assert there.run(["sh", "-c", "head -c 100000 /dev/urandom"]).exit_code == 0


def test_letters_that_are_cut_between_two_reads_are_whole(there: Shell) -> None:
    script = "i=0; while [ $i -lt 30000 ]; do printf '주문 '; i=$((i+1)); done"
    assert there.run(["sh", "-c", script], deadline=50).stdout == "주문 " * 30000


def test_output_without_end_is_given_up(there: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.anywhere, "_MOST_OUTPUT", 1_000_000)
    with pytest.raises(CannotError, match="prints without end"):
        within(15, lambda: there.run(["cat", "/dev/zero"], deadline=20))


def test_many_at_once(there: Shell) -> None:
    with ThreadPoolExecutor(8) as pool:
        said = pool.map(lambda number: there.run(["echo", str(number)]).stdout, range(40))
        assert list(said) == [f"{number}\n" for number in range(40)]
