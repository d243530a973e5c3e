"""Completion of commands and options, written for the shell that asks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

_BASH = """\
_enokictl() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="" word
  case "${{COMP_WORDS[COMP_CWORD-1]}}" in
    -o|--output) COMPREPLY=($(compgen -W "{forms}" -- "$current")); return ;;
    --socket|--file) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$word" in -*) ;; *) command="$word"; break ;; esac
  done
  case "$command" in
{cases}
    *) COMPREPLY=($(compgen -W "{commands} {options}" -- "$current")) ;;
  esac
}}
complete -F _enokictl enokictl
"""

_FISH_COMMAND = "complete -c enokictl -f -n __fish_use_subcommand -a {name} -d '{words}'"
_FISH_OPTION = "complete -c enokictl -n '__fish_seen_subcommand_from {name}' -l {option}"
_FISH_WORD = "complete -c enokictl -f -n '__fish_seen_subcommand_from {name}' -a '{word}'"
FORMS = ("table", "json", "yaml")
"""Of an answer."""


def script(shell: str, commands: Mapping[str, argparse.ArgumentParser], options: list[str]) -> str:
    """shell: bash, zsh or fish. commands: by name. options: those before the command."""
    if shell == "fish":
        lines = []
        for name, parser in commands.items():
            lines.append(_FISH_COMMAND.format(name=name, words=(parser.description or "").replace("'", "")))
            for word in words_of(parser):
                if word.startswith("--"):
                    values = f" -xa '{' '.join(FORMS)}'" if word == "--output" else ""
                    lines.append(_FISH_OPTION.format(name=name, option=word[2:]) + values)
                else:
                    lines.append(_FISH_WORD.format(name=name, word=word))
        return "\n".join(lines) + "\n"
    cases = "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W "{" ".join(words_of(parser))}" -- "$current")) ;;'
        for name, parser in commands.items()
    )
    text = _BASH.format(cases=cases, commands=" ".join(commands), options=" ".join(options), forms=" ".join(FORMS))
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def words_of(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a command, and the values its arguments are limited to."""
    words: list[str] = []
    for action in parser._actions:  # noqa: SLF001 - argparse offers no other way to list them
        words += [option for option in action.option_strings if option.startswith("--")]
        if action.choices and not action.option_strings:
            words += [str(choice) for choice in action.choices]
        elif not action.option_strings:
            words += str(action.metavar).split("|")[1:]  # NAMESPACE/POD|node
    return words
