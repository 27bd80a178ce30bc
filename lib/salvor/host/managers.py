"""How the managers of services are asked and told, in POSIX sh: systemd, supervisor, a script of sysvinit, xinetd, pm2;
and how a line of /etc/rc.local is found.
"""

LOOK = r"""
script_of() {
    for script in "/etc/init.d/$1" "/etc/rc.d/init.d/$1" "/etc/rc.d/rc.$1" "/usr/local/etc/rc.d/$1"; do
        [ -x "$script" ] && return
    done
    return 1
}
# Many write it without a newline, and `read` takes that for an error. One that ended can be signalled until its parent
# has looked.
lives() {
    process=$(cat -- "$1" 2>/dev/null) && [ -n "$process" ] && kill -0 "$process" 2>/dev/null &&
        ! grep -q '^State:.Z' "/proc/$process/status" 2>/dev/null
}
# The number of a process that is over goes to another, after a reboot soon: what that was started with tells.
lives_as() { # lives_as FILE cmdline|environ LINE
    lives "$1" && { [ ! -r "/proc/$process/$2" ] || tr '\0' '\n' <"/proc/$process/$2" | grep -q -- "$3"; }
}
process_of() {
    for file in "/run/$1.pid" "/var/run/$1.pid" "/run/$1/$1.pid" "/var/run/$1/$1.pid"; do
        lives "$file" && echo "$process" && return
    done
    pidof "$1" 2>/dev/null
}
rc_local_of() { # the line that starts it
    for file in /etc/rc.local /etc/rc.d/rc.local /etc/init.d/boot.local; do
        [ -r "$file" ] && grep -v '^[[:space:]]*#' "$file" | grep -m 1 -F -w -e "$1" && return
    done
    return 1
}
# Two that find no server would start two: one at a time, and who looks waits for it.
pm2_is_started() { [ ! -d "$1" ] || (exec 9<"$1" && flock 9) 2>/dev/null; }
pm2_saved() { grep -Fq '"name": "'"$2"'"' "$1/dump.pm2" 2>/dev/null; }
pm2_runs() { lives_as "$1/pm2.pid" cmdline 'God Daemon'; }
# Where the daemon died alone, its programs run on and hold their ports, and a new daemon does not know them.
pm2_lost() { # pm2_lost HOME NAME
    daemon=none
    ! pm2_runs "$1" || daemon=$process
    for file in "$1/pids/$2"-*.pid; do
        ! lives_as "$file" environ "^name=$2\$" || grep -q "^PPid:[[:space:]]*$daemon\$" "/proc/$process/status" ||
            echo "$process"
    done
}
# One whose daemon is frozen waits for ever.
pm2_list() { if timeout 9 true 2>/dev/null; then timeout 9 pm2 jlist; else pm2 jlist; fi 2>/dev/null </dev/null; }
# A program of several processes is a group, and its name alone is nothing to supervisor.
# A program of it alone, as in somebody's virtual environment, is no supervisor, and takes its time to say so: it runs,
# or has a configuration where its program looks, or that program is a wrapper, which knows where it is.
supervisor_configured() {
    place=$(dirname "$1")/..
    for file in "$place/etc" "$place" . etc /etc /etc/supervisor; do
        [ ! -e "$file/supervisord.conf" ] || return 0
    done
    return 1
}
supervisor_is_there() {
    control=$(command -v supervisorctl) || return
    supervisor_configured "$control" || ! head -n 1 "$control" | grep -q python ||
        grep -q -s -x supervisord /proc/[0-9]*/comm
}
supervisor_status() {
    said=$(supervisorctl status "$1" 2>/dev/null)
    case $said in "$1: "*) said=$(supervisorctl status "$1:*" 2>/dev/null) ;; esac
    echo "$said"
}
look() {
    silent=none
    if [ -d /run/systemd/system ]; then
        said=$(systemctl show -p LoadState -p ActiveState -p MainPID -p InvocationID -- "$1" 2>/dev/null | tr '\n' ' ')
        case $said in *LoadState=not-found*) ;; *LoadState=*) echo "service $1 systemd $said"; return ;; esac
    fi
    said=
    ! supervisor_is_there || said=$(supervisor_status "$1")
    case $said in
    "$1 "* | "$1:"[!\ ]*) echo "service $1 supervisor" $said; return ;;
    '' | "$1: "*) ;;
    'http://localhost:9001 refused connection') # its guess where nobody said where supervisor is
        ! supervisor_configured "$control" || silent='supervisor does not answer'
        ;;
    *) silent='supervisor does not answer' ;;
    esac
    if script_of "$1"; then
        # As service(8) does: the script must not depend on who calls it.
        said=$(env -i PATH="$PATH" "$script" status 2>&1 </dev/null)
        code=$?
        case $said in *[Uu]sage*) code=usage ;; esac
        echo "service $1 sysvinit $code" $(process_of "$1")
        return
    fi
    # Of what xinetd starts for each connection, chkconfig says one word; of a script, one for each runlevel.
    if command -v chkconfig >/dev/null; then
        said=$(chkconfig --list "$1" 2>/dev/null)
        case $(echo $said) in "$1 on" | "$1 off") echo "service $1 xinetd" ${said#"$1"} $(pidof xinetd); return ;; esac
    fi
    # pm2 starts a server of its own when asked and none runs. What it saved (dump.pm2) is known to it, whether it runs
    # or not.
    home=${PM2_HOME:-$HOME/.pm2}
    pm2_is_started "$home"
    said=
    if pm2_runs "$home"; then
        said=$(pm2_list | grep '^\[')
        case $said in *'"name":"'"$1"'"'*) echo "service $1 pm2 $said"; return ;; esac
        [ "$said" ] || silent='pm2 does not answer'
    elif command -v pm2 >/dev/null; then
        said=dead silent='pm2 does not answer'
    fi
    if [ "$said" ] && pm2_saved "$home" "$1"; then
        lost=$(pm2_lost "$home" "$1")
        if [ "$lost" ]; then echo "service $1 pm2 lost" $lost; else echo "service $1 pm2 saved"; fi
        return
    fi
    [ "$said" != dead ] || silent="pm2 does not answer: no daemon of $home runs, and its dump.pm2 does not name $1; \
there: pm2 start its ecosystem file, pm2 save"
    if [ "$silent" = none ] && said=$(rc_local_of "$1"); then
        silent="rc.local $(process_of "$1" | tr '\n' ' ')| $said"
    fi
    echo "service $1 $silent"
}
"""
"""Defines `look NAME`, which prints one line for `read`."""

ACT = r"""
case $2 in
systemd) systemctl "$3" -- "$1" ;;
supervisor)
    case $(supervisor_status "$1") in "$1 "*) supervisorctl "$3" "$1" ;; *) supervisorctl "$3" "$1:*" ;; esac
    ;;
pm2)
    home=${PM2_HOME:-$HOME/.pm2}
    # dash becomes the last command of a subshell, and would let the lock go
    (exec 9<"$home" && flock 9; pm2 ping 9<&-; true) >/dev/null 2>&1
    lost=$(pm2_lost "$home" "$1") # two of one program would not both get its port
    [ -z "$lost" ] || kill $lost
    until=$(($(date +%s) + 10))
    for process in $lost; do
        while grep -q '^State:.[^Z]' "/proc/$process/status" 2>/dev/null; do
            [ "$(date +%s)" -lt "$until" ] || kill -9 "$process"
            sleep 0.1
        done
    done
    if [ "$3" = stop ] || pm2 jlist 2>/dev/null | grep -Fq '"name":"'"$1"'"'; then
        pm2 "$3" "$1"
    else # of what it saved, this one alone
        one=$home/salvor-$1.dump
        node -e 'const [name, file] = process.argv.slice(1), saved = JSON.parse(require("fs").readFileSync(file));
            console.log(JSON.stringify(saved.filter(one => one.name === name)))' "$1" "$home/dump.pm2" >"$one" &&
            PM2_DUMP_FILE_PATH=$one PM2_DUMP_BACKUP_FILE_PATH=$one pm2 resurrect
        code=$?
        rm -f -- "$one"
        exit "$code"
    fi
    ;;
xinetd) case $3 in start) chkconfig "$1" on ;; *) chkconfig "$1" off ;; esac ;; # it does so at once
sysvinit) script_of "$1" && exec env -i PATH="$PATH" HOME=/ "$script" "$3" ;;
esac </dev/null
"""
"""Carries an action out, after LOOK: NAME MANAGER start|stop|restart."""
