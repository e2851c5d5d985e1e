"""What a signal ends: the running command, cleaned up; and where it cannot, as a call does not return, the process."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploykit.files import remove_unfinished

__all__ = ["INTERRUPTED", "interruptible"]

INTERRUPTED = 130
"""Exit code of a command that was interrupted (128 + SIGINT, as shells have it)."""

_GRACE_S = 20.0  # for the call at hand to return and the command to clean up; large models take seconds a call
_PATIENCE_S = 2.0  # later a second signal is an order; earlier it is how a closed terminal says it twice
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def interruptible(last_words: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP (a cancelled job, a closed terminal) end a command as Ctrl-C does.

    Python raises KeyboardInterrupt once the call at hand returns. A model that never ends, run within this process,
    does not return: then a thread, which Python wakes at once (``signal.set_wakeup_fd``), removes what is half-written
    and ends the process with exit code 130, after 20 seconds or at a second signal.

    Args:
        last_words: Called before the process ends so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(woken, ended, last_words), daemon=True)
    # What is ignored already stays so: nohup means that a closed terminal shall not end the command.
    heeded = [number for number in _SIGNALS[1:] if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    before = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        wakes.close()  # the end of what the thread reads
        watch.join()
        woken.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _watch(woken: socket.socket, ended: threading.Event, last_words: Callable[[], None]) -> None:
    """Each byte is the number of a signal; none come any more once the block has ended."""
    while number := woken.recv(1):
        if number[0] in _SIGNALS:
            _wait(woken)
            if ended.is_set():
                return
            remove_unfinished()
            last_words()
            os._exit(INTERRUPTED)


def _wait(woken: socket.socket) -> None:
    """Until the block ends, time is up, or a second signal comes."""
    began = time.monotonic()
    while (left := began + _GRACE_S - time.monotonic()) > 0:
        woken.settimeout(left)
        try:
            number = woken.recv(1)
        except TimeoutError:
            return
        if not number or (number[0] in _SIGNALS and time.monotonic() - began > _PATIENCE_S):
            return
