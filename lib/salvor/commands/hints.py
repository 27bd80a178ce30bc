"""A hint names the next command. What raised it often knows neither the service nor the platform: they are added to it
where it is said, so that the command can be typed as it stands.
"""

from __future__ import annotations

import re
import shlex

from salvor.commands.everything import namespace

_OPTIONS = r"(?: --[a-z][a-z-]*(?:=(?:'[^']*'|[^\s,;:)'\"]*[^\s,;:)'\".]))?)"
_COMMAND = re.compile(rf"\binv ([a-z][a-z_.]*[a-z])(?:((?: (?!inv\b)[\w-]+){{0,2}})({_OPTIONS}+))?")


def whole(hint: str, *, service: str = "", platform: str = "", incident: str = "") -> str:
    """`hint`, in which each command of `inv` that names none of these has those that it takes."""
    takes = {name: context for context in namespace.to_contexts() for name in (context.name, *context.aliases)}
    typed = {"--service": service, "--platform": platform, "--incident": incident}

    def completed(found: re.Match[str]) -> str:
        task, words, options = takes.get(found[1]), found[2] or "", found[3] or ""
        if task is None:
            return found[0]
        given = {word.split("=")[0] for word in options.split() if word.startswith("--")}
        names = [name for name, value in typed.items() if value and name in task.flags]
        if given & {"--incident", "--platform", "--episode"}:
            names = []  # it says already of what
        elif "--service" in given:
            names = [name for name in names if name == "--platform"]
        elif "--service" in names or "--platform" in names:
            names = [name for name in names if name != "--incident"]
        more = "".join(f" {name}={shlex.quote(typed[name])}" for name in names)
        is_prose = bool(words) and not task.positional_args  # such as `inv restore without --at`
        return f"inv {found[1]}{more}{words}{options}" if is_prose else found[0] + more

    return _COMMAND.sub(completed, hint)
