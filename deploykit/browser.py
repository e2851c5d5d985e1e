"""A headless Chromium: where it is, how it is started, what its processes take, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from deploykit import browser_guard
from deploykit.errors import ProviderError

__all__ = ["Browser", "find_browser"]

_VARIABLE = "DEPLOYKIT_BROWSER"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_MAC_PATHS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-breakpad",  # its process would outlive the others
    "--mute-audio",
    # A page that nobody looks at is slowed down; this one is measured.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--js-flags=--expose-gc",  # what is garbage before the model must not hide what the model takes
    # A process held ready for the next page would be taken for the page's.
    "--disable-features=SpareRendererForSitePerProcess",
)
_OF_BROWSER = {"--top-chrome-webui", "--extension-process"}  # renderers of its own surface
# A socket's name has 104 letters on macOS; the browser adds /org.chromium.Chromium.XXXXXX/SingletonSocket to ours.
_LONGEST = 55
_SHORT = "/tmp"
_GOODBYE_S = 8.0  # the guard's grace, and time to remove the profile
_ERROR_CHARACTERS = 200


def find_browser() -> str:
    """The program that ``DEPLOYKIT_BROWSER`` names, else the first Chromium or Chrome on PATH.

    Raises: ProviderError when there is none.
    """
    if given := os.environ.get(_VARIABLE):
        if found := shutil.which(given):
            return found
        raise ProviderError(f"{_VARIABLE} is {given!r}, which is no program; name Chromium or Chrome, or unset it")
    places: list[str] = [*_NAMES, *(_MAC_PATHS if sys.platform == "darwin" else ())]
    for name in places:
        if found := shutil.which(name):
            return found
    raise ProviderError(
        f"provider 'web' needs a browser, and none of {', '.join(_NAMES)} is on PATH; install one"
        f" (apt install chromium), or name it in {_VARIABLE}"
    )


def _profile() -> str:
    """A new folder whose name leaves room for that of the browser's socket, of which systems take about 100 letters."""
    made = tempfile.mkdtemp(prefix="deploykit-browser-")
    if len(made) <= _LONGEST or not Path(_SHORT).is_dir():
        return made
    Path(made).rmdir()
    return tempfile.mkdtemp(prefix="deploykit-browser-", dir=_SHORT)


class Browser:
    """One browser with a profile of its own that shows one page; ``end`` has to be called, and is safe to repeat.

    Its processes end with this one, however that dies (``browser_guard``).

    Raises: ProviderError when the program cannot be started.
    """

    def __init__(self, program: str, url: str) -> None:
        self._profile = _profile()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end
        flags = [*_FLAGS, *(["--no-sandbox"] if _is_superuser() else []), f"--user-data-dir={self._profile}", url]
        guard = [sys.executable, "-I", "-S", str(Path(browser_guard.__file__)), self._profile]
        self._guard = subprocess.Popen(
            [*guard, program, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"TMPDIR": self._profile},  # what it makes there goes with the profile
            start_new_session=True,  # Ctrl-C reaches the whole group: the parent decides
        )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line:
            words = self.last_words()
            self.end()
            raise ProviderError(f"{program} cannot be started{words}")
        self.pid = int(line)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guard.poll()

    def last_words(self) -> str:
        """The last line that the browser wrote to its standard error, to end a message; may be empty."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:_ERROR_CHARACTERS]}" if lines else ""

    def processes(self) -> list[Any]:
        """All its processes, as ``psutil.Process``."""
        import psutil

        try:
            main = psutil.Process(self.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def renderer(self) -> int | None:
        """The process id of the page's process; None where the system does not tell which it is."""
        import psutil

        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                words = process.cmdline()
                if "--type=renderer" in words and not _OF_BROWSER & set(words):
                    found.append(process.pid)
        return found[0] if len(found) == 1 else None

    def cpu_s(self) -> float:
        """Processor seconds of all its processes that run now."""
        return sum(self._cpu_times())

    def _cpu_times(self) -> Iterator[float]:
        import psutil

        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                yield times.user + times.system

    def is_busy(self) -> bool:
        """Whether a thread of one of its processes wants a processor; False where the system does not tell."""
        stats = (stat for process in self.processes() for stat in Path(f"/proc/{process.pid}/task").glob("[0-9]*/stat"))
        return any(_state(stat) == "R" for stat in stats)

    def end(self) -> None:
        """Ends all its processes and removes its profile."""
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._guard.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        shutil.rmtree(self._profile, ignore_errors=True)
        self._log.close()


def _is_superuser() -> bool:
    """Chromium refuses to sandbox what runs as root."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _state(stat: Path) -> str:
    """The state of a thread in /proc (proc(5)): the letter after its name in brackets, which may hold spaces."""
    try:
        return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return ""
