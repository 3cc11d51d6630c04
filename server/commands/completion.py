"""`prismoe completion`: a script that completes prismoe's commands and options in bash or zsh."""

import argparse
from collections.abc import Sequence

from prismoe.server.commands.parser import COMMANDS, command_parser, parser_of

EXAMPLE = """\
bash

In bash, add `source <(prismoe completion bash)` to ~/.bashrc.
In zsh, add `source <(prismoe completion zsh)` to ~/.zshrc, after compinit.
"""

BASH = """\
_prismoe() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} options= values=
    if ((COMP_CWORD == 1)); then
        values='{commands}' options='--help --version'
    else
        case $command in
{of_commands}
        esac
        case "$command ${{COMP_WORDS[COMP_CWORD-1]}}" in
{of_options}
        esac
    fi
    [[ $word == -* ]] && values=$options
    COMPREPLY=($(compgen -W "$values" -- "$word"))
}}
complete -o default -F _prismoe prismoe
"""
"""The script. If an option has no listed values, bash completes the names of files."""

ZSH = "autoload -Uz bashcompinit && bashcompinit\n"
"""The command that lets zsh run completions for bash."""


def completion_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe completion`."""
    parser = command_parser("completion", EXAMPLE)
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell to complete in")
    return parser


def completion(arguments: Sequence[str]) -> int:
    """Print the script, and return the exit status."""
    shell = completion_parser().parse_args(list(arguments)).shell
    of_commands, of_options = [], []
    for name in COMMANDS:
        actions = parser_of(name)._actions
        named = dict.fromkeys(["--help", *(option for each in actions for option in each.option_strings)])
        values = [value for each in actions if not each.option_strings for value in _values(each)]
        of_commands.append(f"        {name}) options='{' '.join(named)}' values='{' '.join(values)}' ;;")
        for action in actions:
            if action.option_strings and action.nargs != 0:
                option = f'"{name} {action.option_strings[-1]}"'
                of_options.append(f"        {option}) options= values='{' '.join(_values(action))}' ;;")
    script = BASH.format(
        commands=" ".join(COMMANDS), of_commands="\n".join(of_commands), of_options="\n".join(of_options)
    )
    print(ZSH + script if shell == "zsh" else script, end="")
    return 0


def _values(action: argparse.Action) -> list[str]:
    """Return the words that an option or argument takes, if it takes only a few."""
    listed = str(action.metavar or "")
    return [*map(str, action.choices or ())] or (listed[1:-1].split(",") if listed.startswith("{") else [])
