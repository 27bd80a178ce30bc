"""Cutting a machine off: nothing comes in and nothing goes out but SSH from its operator, also after a reboot.

All of it is one script, which stays on the machine as /etc/salvor-fence and is started before its network. Its rules
look at each packet alone, so that a connection that stood before the fence is cut too, and they stand before those of
any firewall there, which they only narrow. The machine itself stays whole: its own traffic over loopback goes on.

Whoever is root on the machine can lift it: against somebody hostile, fence at the switch as well.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from salvor.errors import CannotError, CommandError
from salvor.host import PATH
from salvor.shell import Shell

FILE = "/etc/salvor-fence"
_TABLE = "salvor_fence"
_UNIT = "/etc/systemd/system/salvor-fence.service"
_SCRIPT = "/etc/init.d/salvor-fence"
_KEPT = "# kept"
"""The last line of the script, once everything that starts it at boot is in its place."""

_FROM = "# Reached from: "
"""Begins the line of the script that says which networks still reach the machine."""

_EVERY = 2
"""Seconds after which rules that somebody took away stand again, where systemd is."""

_STANDS = rf"""
stands() {{
    nft list table inet {_TABLE} >/dev/null 2>&1 && return
    [ -e {FILE} ] || ! command -v nft >/dev/null || return
    for program in iptables ip6tables; do
        [ "$program" = iptables ] || [ -e /proc/net/if_inet6 ] || continue
        "$program" -t mangle -S OUTPUT 2>/dev/null | grep -q SALVOR-OUT || return
    done
}}
"""
LOOK = rf"""{_STANDS}
[ ! -e {FILE} ] || echo 'fence written'
! grep -q '^{_KEPT}' {FILE} 2>/dev/null || echo 'fence kept'
sed -n 's/^{_FROM}/from /p' {FILE} 2>/dev/null
if stands; then echo 'fence stands'; elif [ "$(id -u)" != 0 ]; then echo 'fence hidden'; fi
came=${{SSH_CONNECTION:-}}
process=$$
# sudo takes the variable away; the processes that we come from have it.
while [ -z "$came" ] && [ "${{process:-0}}" -gt 1 ]; do
    process=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$process/status" 2>/dev/null)
    came=$({{ tr '\0' '\n' < "/proc/$process/environ"; }} 2>/dev/null | sed -n 's/^SSH_CONNECTION=//p')
done
echo "came $came"
"""
"""Prints the lines for `read`."""

_HEAD = r"""#!/bin/sh
### BEGIN INIT INFO
# Provides:          salvor-fence
# Required-Start:    mountkernfs
# Required-Stop:
# X-Start-Before:    networking ifupdown
# Default-Start:     S
# Default-Stop:
# Short-Description: Salvor's fence: everything is off but SSH from the operator
### END INIT INFO
# chkconfig: 2345 01 99
# description: Salvor's fence: everything is off but SSH from the operator
# Lift it by: inv hosts.unfence, or here by: sh /etc/salvor-fence down
"""
_BODY = (
    r"""
up() { { command -v nft >/dev/null && nft_rules | nft -f -; } || up_iptables; }

up_iptables() {
    rules4 | restore iptables && jump iptables || return
    [ -e /proc/net/if_inet6 ] || return 0
    rules6 | restore ip6tables && jump ip6tables
}

restore() { # others may hold the lock of iptables for a moment
    text=$(cat)
    for try in 1 2 3 4 5; do
        printf '%s\n' "$text" | "$1-restore" --noflush && return
        sleep 1
    done
    return 1
}

jump() {
    for pair in INPUT:IN FORWARD:FORWARD OUTPUT:OUT; do
        "$1" -t mangle -D "${pair%:*}" -j "SALVOR-${pair#*:}" 2>/dev/null
        "$1" -t mangle -I "${pair%:*}" 1 -j "SALVOR-${pair#*:}" || return
    done
}

keep() {
    if [ -d /run/systemd/system ]; then
        unit > UNIT && systemctl daemon-reload && systemctl enable salvor-fence.service &&
            systemctl restart salvor-fence.service
    elif [ -d /etc/init.d ] && command -v update-rc.d >/dev/null; then
        ln -sf FILE SCRIPT && update-rc.d salvor-fence defaults
    elif [ -d /etc/init.d ] && command -v chkconfig >/dev/null; then
        ln -sf FILE SCRIPT && chkconfig --add salvor-fence
    elif [ -f /etc/rc.local ]; then # often a link, which `sed -i` would put a file in the place of
        grep -q salvor-fence /etc/rc.local || sed -i '1a sh FILE start' "$(readlink -f /etc/rc.local)"
        grep -q salvor-fence /etc/rc.local # an empty one has no first line
    else
        echo "found neither systemd, update-rc.d, chkconfig nor /etc/rc.local" >&2
        return 1
    fi
}

down() {
    [ ! -e UNIT ] || systemctl stop salvor-fence.service # else its guard brings back what is taken away below
    nft delete table inet TABLE 2>/dev/null
    for program in iptables ip6tables; do
        "$program" -t mangle -S SALVOR-IN >/dev/null 2>&1 || continue
        for pair in INPUT:IN FORWARD:FORWARD OUTPUT:OUT; do
            while "$program" -t mangle -D "${pair%:*}" -j "SALVOR-${pair#*:}" 2>/dev/null; do :; done
            "$program" -t mangle -F "SALVOR-${pair#*:}"
            "$program" -t mangle -X "SALVOR-${pair#*:}"
        done
    done
    if [ -e UNIT ]; then
        systemctl disable salvor-fence.service
        rm -f UNIT
        systemctl daemon-reload
    fi
    if [ -L SCRIPT ]; then
        ! command -v chkconfig >/dev/null || chkconfig --del salvor-fence
        rm -f SCRIPT
        ! command -v update-rc.d >/dev/null || update-rc.d salvor-fence remove
    fi
    ! grep -q -s salvor-fence /etc/rc.local || sed -i '/salvor-fence/d' "$(readlink -f /etc/rc.local)"
    rm -f FILE
}

case $1 in
up | start) up ;;
keep) keep && echo 'KEPT' >>FILE ;;
guard) while sleep EVERY; do stands || up; done ;;
down) down ;;
*) ;; # stop: only `down` lifts it
esac
""".replace("UNIT", _UNIT)
    .replace("FILE", FILE)
    .replace("SCRIPT", _SCRIPT)
    .replace("TABLE", _TABLE)
    .replace("EVERY", str(_EVERY))
    .replace("KEPT", _KEPT)
)
# A firewall that starts, or loads its own rules anew, may begin with `nft flush ruleset`: hence After, and the guard.
_SYSTEMD = f"""[Unit]
Description=Salvor's fence: everything is off but SSH from the operator
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
After=local-fs.target nftables.service iptables.service ip6tables.service netfilter-persistent.service
After=firewalld.service ufw.service

[Service]
ExecStartPre=/bin/sh {FILE} start
ExecStart=/bin/sh {FILE} guard
Restart=always

[Install]
WantedBy=multi-user.target
"""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Seen:
    """What a machine says of its fence: whether its rules stand (None: hidden from who is not root), whether its script
    is there, whether it is kept over a reboot (False for who is not root), and where our SSH session comes from (an
    address) and to (a port); empty and 0 when it is none. `reached_from`: the networks that its script lets in; empty
    when it does not say so.
    """

    stands: bool | None
    written: bool
    kept: bool
    operator: str = ""
    port: int = 0
    reached_from: tuple[str, ...] = ()

    @property
    def open(self) -> bool | None:
        """Whether others than the operator may reach it; None when that cannot be told, or holds until its next reboot
        only.
        """
        return not self.stands if self.stands is False or (self.stands and self.kept) else None


def read(lines: Mapping[str, list[str]]) -> Seen:
    """What the lines of `LOOK` say."""
    said = lines.get("fence", [])
    came = (lines.get("came") or [""])[0].split()
    stands = True if "stands" in said else None if "hidden" in said else False
    # sshd says UNKNOWN, and port 65535, of what came by no network, as over vsock to a virtual machine.
    operator = (came[0].partition("%")[0], int(came[3])) if len(came) == 4 and came[0] != "UNKNOWN" else ()
    reached_from = tuple(" ".join(lines.get("from", [])).split())
    return Seen(stands, "written" in said, "kept" in said, *(operator or ("", 0)), reached_from)


def refuse_without_root(where: str, seen: Seen) -> None:
    """Rules of packets are hidden from everybody but root, who alone can set them. Raises CannotError."""
    if seen.stands is None:
        raise CannotError(
            f"Commands do not run as root on {where}, so that no fence can be seen, set or lifted there.",
            safe="nothing was changed",
            hint="write run_as: root in the inventory",
        )


def refuse_another_way_in(where: str, seen: Seen, management: Sequence[Network]) -> None:
    """A fence that stands lets in whom the inventory named when it was raised, and the one address that its operator
    came from. Raises CannotError when the inventory names other networks now.
    """
    now = set(map(str, management))
    then = set(seen.reached_from)
    gone = {one for one in then - now if ipaddress.ip_network(one).num_addresses != 1}
    if then and (gone or now - then):
        raise CannotError(
            f"{where} is fenced already, and stays reachable from {', '.join(sorted(then))}, which is not what its "
            f"management: says now ({', '.join(sorted(now)) or 'nothing'}).",
            safe="the fence stands as it was",
            hint=f"to fence it anew, with nothing before it for a moment: inv hosts.unfence --limit={where}, "
            f"then inv hosts.fence --limit={where}",
        )


def raise_it(shell: Shell, seen: Seen, management: Sequence[Network], login: str) -> None:
    """Cut the machine off from all but `management` and whom we are there, and see to it after a reboot too. Called
    again, it does the same. `login` is the account that we come by.

    Raises CannotError when it was refused, or when it would lock out the operator too: nothing is changed then; and
    when it stands, and would not survive a reboot.
    """
    refuse_without_root(shell.where, seen)
    allowed = sorted({*management, *_from_outside(seen.operator)}, key=str)
    if not allowed:
        raise CannotError(
            f"{shell.where} was not fenced: nobody could reach it any more.",
            safe="nothing was changed",
            hint="name in the inventory from where it is managed: management: [10.0.0.0/24]",
        )
    if login and not shell.succeeds(["sh", "-c", 'cut -d: -f1 /etc/passwd | grep -qxF -e "$1"', "sh", login]):
        raise CannotError(
            f"{shell.where} was not fenced: the account {login} comes from a directory on the network, so nobody "
            "could log in any more.",
            safe="nothing was changed",
            hint="name an account of its own in the inventory (ssh: user:)",
        )
    script = _script(allowed, seen.port or 22)
    try:
        # It works from memory first: a disk that takes no file must not keep the fence from standing.
        shell.run(["sh", "-s", "up"], input=script.encode(), deadline=30.0)
    except CommandError as error:
        raise CannotError(
            f"{shell.where} was not fenced: {error.stderr.strip()[-500:]}",
            safe="its network is as it was, or part of it is off",
            hint="it needs root there (run_as: root), and nftables or iptables with ip6tables",
        ) from error
    try:
        shell.write(FILE, script, mode=0o700)
        shell.run(["sh", FILE, "keep"], deadline=60.0)
    except CommandError as error:
        raise CannotError(
            f"{shell.where} is fenced until its next reboot only: {error.stderr.strip()[-500:]}",
            safe="everything is off there but SSH from the operator",
            hint="fence it at the switch before it reboots, or mend this and run the same command again",
        ) from error


def lift(shell: Shell) -> None:
    """Take it away. Called again, it finds nothing to do. Raises CannotError when it was refused."""
    shell.run(["sh", "-s", "down"], input=_script((), 22).encode(), deadline=60.0)


def _from_outside(address: str) -> Iterator[Network]:
    """The operator, as packets name him; nobody when he comes through a tunnel that ends on the machine: its other end
    would be cut off.
    """
    if address:
        found = ipaddress.ip_address(address)
        # One that was seen through an IPv6 socket is an IPv4 address in packets.
        plain = (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found
        if not plain.is_loopback:
            yield ipaddress.ip_network(plain)


def _script(allowed: Sequence[Network], port: int) -> str:
    parts = [
        _HEAD,
        f"{_FROM}{' '.join(map(str, allowed))}\n",
        PATH,
        _function("nft_rules", _nft(allowed, port)),
        *(_function(f"rules{version}", _iptables(version, allowed, port)) for version in (4, 6)),
        _function("unit", _SYSTEMD),
        _STANDS,
        _BODY,
    ]
    return "".join(parts)


def _function(name: str, text: str) -> str:
    return f"{name}() {{\n    cat <<'END'\n{text}END\n}}\n"


def _nft(allowed: Iterable[Network], port: int) -> str:
    """Rules for nftables. Replaced in one act: there is no moment without them."""
    comes, goes = [], []
    families = {4: "ip", 6: "ip6"}
    for network in allowed:
        family = families[network.version]
        comes.append(f"{family} saddr {network} tcp dport {port} accept")
        # What the machine begins itself comes from no server's port, or begins with a SYN.
        goes.append(f"{family} daddr {network} tcp sport {port} tcp flags & (syn | ack) != syn accept")
    if any(network.version == 6 for network in allowed):  # IPv6 finds its neighbours by these
        near = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept"
        comes.append(near)
        goes.append(near)
    # Without these, a long answer over a narrow way (a VPN) never arrives.
    comes += ["icmp type destination-unreachable icmp code frag-needed accept", "icmpv6 type packet-too-big accept"]
    return (
        f"table inet {_TABLE}\ndelete table inet {_TABLE}\ntable inet {_TABLE} {{\n"
        + _chain("input", ['iifname "lo" accept', *comes])
        + _chain("forward", [])
        + _chain("output", ['oifname "lo" accept', *goes])
        + "}\n"
    )


def _chain(hook: str, rules: Iterable[str]) -> str:
    lines = "".join(f"        {rule}\n" for rule in rules)
    return f"    chain {hook} {{\n        type filter hook {hook} priority -350; policy drop;\n{lines}    }}\n"


def _iptables(version: int, allowed: Iterable[Network], port: int) -> str:
    """Rules for iptables-restore, in the table mangle: it is asked before filter, where firewalls have theirs."""
    comes, goes = ["-i lo -j ACCEPT"], ["-o lo -j ACCEPT"]
    mine = [one for one in allowed if one.version == version]
    for network in mine:
        comes.append(f"-s {network} -p tcp --dport {port} -j RETURN")
        goes.append(f"-d {network} -p tcp --sport {port} ! --syn -j RETURN")
    if version == 4:
        comes.append("-p icmp --icmp-type fragmentation-needed -j RETURN")
    else:
        comes.append("-p icmpv6 --icmpv6-type packet-too-big -j RETURN")
        if mine:
            for kind in ("neighbour-solicitation", "neighbour-advertisement"):
                comes.append(f"-p icmpv6 --icmpv6-type {kind} -j RETURN")
                goes.append(f"-p icmpv6 --icmpv6-type {kind} -j RETURN")
    chains = {"IN": comes, "FORWARD": [], "OUT": goes}
    lines = ["*mangle", *(f":SALVOR-{name} - [0:0]" for name in chains)]
    lines += [f"-A SALVOR-{name} {rule}" for name, rules in chains.items() for rule in [*rules, "-j DROP"]]
    return "\n".join([*lines, "COMMIT", ""])
