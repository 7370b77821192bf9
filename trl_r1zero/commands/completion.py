"""Completes commands, recipes, keys and their values: `trl-r1zero completion`.

eval "$(trl-r1zero completion bash)"      # in ~/.bashrc
eval "$(trl-r1zero completion zsh)"       # in ~/.zshrc, behind compinit
trl-r1zero completion fish | source       # in ~/.config/fish/config.fish
"""

import re
import sys
from collections.abc import Sequence

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.recipe.bundled import LAUNCH_CONFIGS, RECIPES, command_of, names

from .stored_help import KEYED, help_text

# Each asks this command for the words that may stand where the cursor is; where a recipe or a
# configuration is asked for, and where there are no words, files are offered too.
_BASH = """\
_trl_r1zero() {
    local IFS=$'\\n' word=${COMP_WORDS[COMP_CWORD]} words
    words=$(trl-r1zero completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null)
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    case ${COMP_WORDS[COMP_CWORD - 1]} in
        --config | --accelerate_config) COMPREPLY+=($(compgen -f -- "$word")) ;;
    esac
}
complete -o bashdefault -o default -F _trl_r1zero trl-r1zero
"""
_ZSH = """\
_trl_r1zero() {
    local -a found
    found=("${(@f)$(trl-r1zero completion words "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    [[ -n ${found[1]} ]] && compadd -a found
    [[ -z ${found[1]} || ${words[CURRENT-1]} == --(config|accelerate_config) ]] && _files
}
compdef _trl_r1zero trl-r1zero
"""
_FISH = """\
complete -c trl-r1zero -a '(trl-r1zero completion words \
(commandline -opc)[2..] (commandline -ct) 2> /dev/null)'
"""
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
RUNS = {command for command, method in KEYED.items() if method is not None}


def main(argv: Sequence[str] | None = None, commands: Sequence[str] = ()) -> int:
    """Print a shell's script; or, for that script, the words that may stand at the cursor, of a
    program with these commands."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["words"]:
        print("\n".join(complete(arguments[1:], commands)))
        return 0
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"usage: trl-r1zero completion {'|'.join(SHELLS)}\n\n{__doc__}", end="")
        return 0
    if arguments[0] not in SHELLS:
        message = unknown_name_message("shell", arguments[0], SHELLS)
        print(f"trl-r1zero completion: error: {message}", file=sys.stderr)
        return 2
    print(SHELLS[arguments[0]], end="")
    return 0


def complete(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """What may stand in place of the last word, which may be empty, behind those before it."""
    if len(words) < 2:
        return [name for name in commands if name.startswith("".join(words))]
    command, before, word = words[0].replace("_", "-"), words[-2], words[-1]
    if command not in commands:
        return []
    if word.startswith("-"):
        keys = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z]\w[\w-]*", help_text(command)))
        found = [key for key in keys if key not in ("--key", *words[1:-1])]
    elif before == "--accelerate_config":
        found = names(LAUNCH_CONFIGS)
    elif before == "--config" or (len(words) == 2 and command in ("recipes", "sweep")):
        of = {name: command_of(RECIPES / f"{name}.yaml") for name in names(RECIPES)}
        wanted = {"recipes": set(of.values()), "doctor": RUNS}.get(command, {command})
        found = [name for name in of if of[name] in wanted]
    elif len(words) == 2 and command == "completion":
        found = list(SHELLS)
    else:
        found = _values(command, before.removeprefix("--"))
    return [one for one in found if one.startswith(word)]


def _values(command: str, key: str) -> list[str]:
    """The values of a key, where its type names them."""
    title = re.search(rf"^--{re.escape(key)}: (.*)", help_text(command), re.MULTILINE)
    if command not in KEYED or title is None:
        return []
    type_name = title[1].partition(", default")[0].partition(", required")[0]
    if choices := re.search(r"one of ((?:[^ ,]+, )*[^ ,]+)", type_name):
        return choices[1].split(", ")
    return ["true", "false"] if "bool" in type_name.split(" or ") else []
