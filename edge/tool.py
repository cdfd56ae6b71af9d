"""Modules that are run by themselves, with `python -m`: how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from edge.errors import LutraError

INTERRUPTED = 130


def finish(name: str, main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns, or after one clear message with an error's own code.

    Quietly with 0 where nobody reads the output any more, and with 130 after Ctrl-C.
    """
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        # the interpreter flushes once more at its end, which would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except LutraError as error:
        print(f"{name}: {error.what}", file=sys.stderr)
        if error.cure:
            print(f"  to do: {error.cure}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(LutraError.exit_code)
