"""Runs one server for a parent that may die at any moment, and cleans up after both.

Started by `meterd.embedded` as a script, never imported: only built-in modules, no site-packages.

    python -I -S watchdog.py DIRECTORY SERVER [ARGUMENT ...]

File descriptor 0 is one end of a socket pair whose other end only the parent holds. The kernel
closes that end however the parent ends, SIGKILL included, so end-of-file here always means: nobody
needs this server any more. Then the server is killed and DIRECTORY removed.

    parent -> watchdog   `s` start the server, `k` kill it, end of file: clean up and leave
    watchdog -> parent   `pid N` started, `exit N` gone (negative: by signal), `failed TEXT`

A death signal (PR_SET_PDEATHSIG) would be shorter, but it fires when the *thread* that asked for it
ends, and does not exist outside Linux.
"""

from __future__ import annotations

import os
import select
import signal
import sys

LOG_NAME = "server.log"
PARENT = 0


def tell(line: str) -> None:
    try:
        os.write(PARENT, line.encode() + b"\n")
    except OSError:
        return  # the parent is gone; end of file follows


def start(command: list[str], log: str) -> int:
    """Start the server in a process group of its own; its pid, or 0 after telling why not."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setpgroup=0,
            setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE],
        )
    except OSError as error:
        tell(f"failed {error}")
        return 0
    tell(f"pid {pid}")
    return pid


def kill(pid: int) -> None:
    """SIGKILL to the server's whole group: a background save must not outlive its parent."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still ours


def remove(directory: str) -> None:
    for parent, folders, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(parent, name))
        for name in folders:
            os.rmdir(os.path.join(parent, name))
    os.rmdir(directory)


def serve(command: list[str], log: str) -> int:
    """Obey the parent until it is gone; the pid of the server still running then, or 0."""
    # The mask is inherited through exec: a parent that blocks SIGCHLD would make us miss exits.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    wakeups, wake = os.pipe()
    os.set_blocking(wakeups, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    for noticed in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(noticed, lambda *_: None)

    pid = 0
    while True:
        ready, _, _ = select.select([PARENT, wakeups], [], [])
        if wakeups in ready:
            if signal.SIGTERM in os.read(wakeups, 512):
                return pid
            if pid:
                gone, status = os.waitpid(pid, os.WNOHANG)
                if gone:
                    pid = 0
                    tell(f"exit {os.waitstatus_to_exitcode(status)}")
        if PARENT in ready:
            try:
                order = os.read(PARENT, 1)
            except ConnectionError:  # closed with an unread line of ours in its buffer
                return pid
            if not order:
                return pid
            if order == b"s" and not pid:
                pid = start(command, log)
            elif order == b"k" and pid:
                kill(pid)


def main() -> None:
    directory, *command = sys.argv[1:]
    pid = serve(command, os.path.join(directory, LOG_NAME))
    if pid:
        kill(pid)
        os.waitpid(pid, 0)
    remove(directory)


if __name__ == "__main__":
    main()
