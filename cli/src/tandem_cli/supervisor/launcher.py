"""Runs in the child, as a script: ties its life to the supervisor's, then becomes the program.

    python launcher.py PARENT_PID PROGRAM [ARGUMENT ...]

A kill -9 of the supervisor must leave nothing behind, and only the kernel can see to that: PR_SET_PDEATHSIG.
The setting survives exec, and it cannot be made from the parent without running Python between fork and exec,
which is not safe in a process with threads. Imports nothing of Tandem: it starts in milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent_pid: int) -> None:
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:  # Linux; elsewhere only an orderly stop stops the children
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the setting was made
        sys.exit(1)


def _main() -> None:
    _die_with_parent(int(sys.argv[1]))
    try:
        # Python ignores SIGPIPE, and what is ignored stays so in the program.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - becoming the program is the purpose
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    _main()
