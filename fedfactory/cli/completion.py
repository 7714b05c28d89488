"""`fedfactory completion bash|zsh`: what makes a shell complete both programs' commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedfactory.cli.arguments import Arguments

PROGRAMS: Final = ("fedfactory", "site-agent")
EPILOG: Final = """\
for bash, in ~/.bashrc:   eval "$(fedfactory completion bash)"
for zsh, in ~/.zshrc after compinit:   eval "$(fedfactory completion zsh)\""""


def run(words: Sequence[str]) -> int:
    """Print the shell's code; return 0."""
    import argparse

    parser = Arguments(
        prog="fedfactory completion",
        description="Print what makes bash or zsh complete commands, options, RUN and settings.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    asked = parser.parse_args(words)
    from argcomplete.shell_integration import shellcode

    print(shellcode(PROGRAMS, shell=asked.shell))
    return 0
