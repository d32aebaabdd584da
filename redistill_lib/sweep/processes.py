"""A notebook's kernel and all that it started: found by a mark in their environment, ended together.

As a script this file is the guard of a kernel: it waits until the process that runs the notebook is gone, be it by
SIGKILL, and then ends what that process can no longer end. It imports nothing of the library, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time

import psutil

MARK = "REDISTILL_KERNEL"  # tokens of the kernels above a process, the outermost first, joined by "/"


def marked(token: str) -> str:
    """The value of `MARK` for a kernel: a runner that itself runs in a notebook's kernel belongs to that one, too."""
    return "/".join(filter(None, (os.environ.get(MARK), token)))


def end_processes(token: str, grace: float = 1.0) -> None:
    """End every process that carries `token` in its environment, in whatever session: SIGTERM, then SIGKILL.

    The seconds of `grace` between the two are for what tidies up, such as the tracker of shared memory. Nothing but
    the token decides, so that no process of anyone else can be meant; one that cleared its environment is not found.
    """
    if not re.fullmatch("[0-9a-f]{32}", token):
        raise ValueError(f"{token!r} is not the token of a kernel")
    begun = time.monotonic()
    while found := [each for each in psutil.process_iter() if _carries(each, token)]:
        waited = time.monotonic() - begun
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.terminate() if waited < grace else process.kill()
        if waited > grace + 3:  # they hang in the operating system, and no signal reaches them
            return
        time.sleep(0.05)  # and no wait(), which would take a kernel's exit code away from who started it


def _carries(process: psutil.Process, token: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            return token in process.environ().get(MARK, "").split("/")
    return False


def start_guard(token: str) -> subprocess.Popen[bytes]:
    """A process that sees by the end of a pipe when this one is gone; to be killed once all has ended."""
    command, nowhere = [sys.executable, "-P", __file__, token], subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True)


if __name__ == "__main__":
    sys.stdin.read()
    end_processes(sys.argv[1])
