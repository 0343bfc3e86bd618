"""How the commands of the command line print their usage."""

import signal
from typing import Any

from typer.core import TyperCommand

__all__ = ["Command", "allow_broken_pipe"]


class Command(TyperCommand):
    """A command whose usage line looks the same in every version of typer: `[OPTIONS] HASH...`.

    Arguments are hidden in the list of options, because the help of the command describes them.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = ["[OPTIONS]"]
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                name = f"{parameter.metavar}{'' if parameter.nargs == 1 else '...'}"
                pieces.append(name if parameter.required else f"[{name}]")
        return pieces


def allow_broken_pipe() -> None:
    """End silently, as other commands do, when `head` has read enough. Call it when nothing is left to clean up."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
