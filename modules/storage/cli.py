"""`atlas-storage`: the command line. Here is the entry; the commands are in `modules.storage.commands`.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. An error is one line on stderr.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import List, Optional

from modules.storage.commands.errors import INTERRUPTED, OK, ReaderGoneError, explain, is_usage_error

__all__ = ["main"]


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; None: the process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    else:
        # Without a handler Python would print our warnings between the lines of the output.
        logging.getLogger().addHandler(logging.NullHandler())
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = _run(given or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (BrokenPipeError, ReaderGoneError):
        # Whoever read the output has had enough (`| head`). Python would complain once more at exit: give it nowhere to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as exc:
        code, message = explain(exc)
        if debug and not is_usage_error(exc):
            logging.getLogger(__name__).exception("storage.cli.failed")
        print(message, file=sys.stderr)  # noqa: T201
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)  # noqa: T201
    return code


def _interrupt(number: int, frame: Optional[FrameType]) -> None:
    # Does what Python's own handler does. asyncio replaces that one, and then a read from a pipe goes on after Ctrl-C.
    raise KeyboardInterrupt


def _run(arguments: List[str]) -> int:
    if arguments == ["--version"]:
        from modules.storage.version import __version__

        print(__version__)  # noqa: T201
        return OK
    from modules.storage.commands.app import app

    result = app(args=arguments, prog_name="atlas-storage", standalone_mode=False)
    return result if isinstance(result, int) else OK


if __name__ == "__main__":
    sys.exit(main())
