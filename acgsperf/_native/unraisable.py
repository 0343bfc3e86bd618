"""Reports what a callback raised to `sys.unraisablehook`, as the interpreter does for `__del__`."""

import sys
from contextlib import suppress
from types import SimpleNamespace


def report_unraisable(error: BaseException, origin: object) -> None:
    """Pass an exception of `origin` to the hook; never raises."""
    args = SimpleNamespace(
        exc_type=type(error),
        exc_value=error,
        exc_traceback=error.__traceback__,
        err_msg=None,
        object=origin,
    )
    if sys.unraisablehook is sys.__unraisablehook__:
        # The interpreter's own hook accepts its own argument type only, which Python code cannot create.
        print(f"Exception ignored in: {origin!r}", file=sys.stderr)
        sys.excepthook(args.exc_type, args.exc_value, args.exc_traceback)
    else:
        with suppress(BaseException):
            sys.unraisablehook(args)
