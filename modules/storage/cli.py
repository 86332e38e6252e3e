"""`atlas-storage`: the command line. Here is the entry; the commands are in `modules.storage.commands`.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. An error is one line on stderr.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import List, Optional

from modules.storage.commands.errors import INTERRUPTED, OK, explain, is_usage_error

__all__ = ["main"]


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; None: the process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    # Without a handler Python would print our warnings between the lines of the output.
    logging.getLogger().addHandler(logging.NullHandler())
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    try:
        code = _run(given or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough (`| head`). Python would complain once more at exit: give it nowhere to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as exc:
        code, message = explain(exc)
        if debug and not is_usage_error(exc):
            logging.getLogger(__name__).exception("storage.cli.failed")
        print(message, file=sys.stderr)  # noqa: T201
    return code


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
