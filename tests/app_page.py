"""A web app in a real browser, served from its folder, with what a person does to it."""

import base64
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from browser import LIMIT_S, Browser

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")

# What the page says once it runs or cannot: "ready" or "failed".
STARTED = """new Promise((done) => {
  const look = () => {
    const state = document.body && document.body.dataset.state;
    if (state && state !== "starting") done(state); else setTimeout(look, 20);
  };
  look();
})"""

# After the earlier answer was taken away: true once there is a new one or a problem is told.
ANSWERED = """new Promise((done) => {
  const look = () => {
    const problem = document.getElementById("problem");
    if (document.querySelector("#bars li") || !problem.hidden) done(true); else setTimeout(look, 10);
  };
  look();
})"""
FORGET = "document.getElementById('bars').replaceChildren(), document.getElementById('problem').hidden = true"
ROWS = """Array.from(document.querySelectorAll("#bars li"), (row) =>
  Array.from(row.querySelectorAll("span"), (part) => part.textContent))"""
PROBLEM = "document.getElementById('problem').hidden ? '' : document.getElementById('problem').textContent"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder):
    """The address of a server on this machine that gives the files of a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class AppBrowser(Browser):
    def __init__(self, profile):
        super().__init__(profile, *CAMERA)
        self.ask("Network.setCacheDisabled", cacheDisabled=True)

    def open(self, url, width=1280, scheme="light"):
        """The page's state once it has started or failed."""
        self.events.clear()
        state = self.show(url, width, scheme, STARTED)
        self.ask("Page.setInterceptFileChooserDialog", enabled=True)  # a page from elsewhere has another process
        return state

    def whole_page(self, path):
        """A picture of all of it, also of what lies below the window."""
        size = "[document.documentElement.clientWidth, document.documentElement.scrollHeight]"
        self.run("scrollTo(0, 0)")
        width, height = self.run(size)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def middle_of(self, selector):
        """Where an element's middle is, once it is in view and has been drawn there."""
        return self.run(
            f"""new Promise((done) => {{
              const item = document.querySelector({selector!r});
              item.scrollIntoView({{ block: "center", behavior: "instant" }});
              requestAnimationFrame(() => requestAnimationFrame(() => {{
                const box = item.getBoundingClientRect();
                done([box.x + box.width / 2, box.y + box.height / 2]);
              }}));
            }})"""
        )

    def mouse(self, kind, x, y, **more):
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, **more)

    def click(self, selector):
        x, y = self.middle_of(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def press(self, key, code=None, number=0, text=""):
        for kind in ("keyDown", "keyUp"):
            facts = {"key": key, "code": code or key, "windowsVirtualKeyCode": number}
            self.ask("Input.dispatchKeyEvent", type=kind, **facts, **({"text": text} if text else {}))

    def give_to_chooser(self, path):
        """Hands a file to the dialog that is open, as a person would by choosing it."""
        end = time.monotonic() + LIMIT_S
        while not (asked := [event for event in self.events if event["method"] == "Page.fileChooserOpened"]):
            assert time.monotonic() < end, "no file dialog was opened"
            self.events += self.read(1.0)
        self.events = [event for event in self.events if event not in asked]
        self.ask("DOM.setFileInputFiles", files=[str(path)], backendNodeId=asked[-1]["params"]["backendNodeId"])

    def upload(self, path):
        """A real click on the page's field and a real file; gives the rows of the answer, and the problem told."""
        self.run(FORGET)
        self.click("#drop")
        self.give_to_chooser(path)
        return self.answer()

    def answer(self):
        self.run(ANSWERED)
        return self.run(ROWS), self.run(PROBLEM)
