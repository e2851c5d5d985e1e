"""A real browser, spoken to over a pipe, for the tests of pages."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless",
    "--hide-scrollbars",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
LIMIT_S = 60.0


class Browser:
    """A browser spoken to over a pipe: the DevTools protocol, one JSON message after another, each ended by NUL."""

    def __init__(self, profile, *flags):
        to_browser, self.out = os.pipe()
        self.inn, from_browser = os.pipe()

        def as_3_and_4():  # where Chromium looks for them; through high numbers, so that neither overwrites the other
            low, high = os.dup(to_browser), os.dup(from_browser)
            os.dup2(low, 203), os.dup2(high, 204)
            os.dup2(203, 3), os.dup2(204, 4)

        command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=as_3_and_4, **quiet)
        os.close(to_browser), os.close(from_browser)
        self.rest, self.number, self.events, self.session = b"", 0, [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Network.enable")
        self.ask("Page.enable")

    def ask(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            messages = self.read(end - time.monotonic())
            answers = [message for message in messages if message.get("id") == self.number]
            self.events += [message for message in messages if "id" not in message]
            if answers:
                assert "error" not in answers[0], answers[0]
                return answers[0]["result"]
        raise AssertionError(f"no answer to {method} within {LIMIT_S} s")

    def read(self, seconds):
        if not select.select([self.inn], [], [], seconds)[0]:
            return []
        chunk = os.read(self.inn, 1 << 20)
        assert chunk, f"the browser ended with {self.process.poll()}"
        *whole, self.rest = (self.rest + chunk).split(b"\0")
        return [json.loads(item) for item in whole]

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show(self, url, width, scheme, ready):
        """Opens a page in a window of this width, a phone's where it is narrow, and waits for ``ready``, a promise."""
        phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=url)
        return self.run(ready)

    def screenshot(self, path):
        picture = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))

    def close(self):
        with contextlib.suppress(OSError):
            os.write(self.out, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out), os.close(self.inn)
