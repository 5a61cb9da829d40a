"""Headless Chromium over the DevTools protocol's pipe: what a page asks for, what it logs, how it looks.

`open_page(file, width)` needs no package: the browser reads commands from its descriptor 3 and answers on 4, JSON
documents that end with a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium():
    """The browser's program, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Seen:
    """A page as a browser of some width saw it."""

    requests: list  # every address that it asked for, its own first
    messages: list  # errors and warnings of the console, refused resources included
    width: int  # of its content, in pixels: more than the window's means scrolling sideways
    text: str
    broken: int  # pictures that did not decode
    png: bytes


class Browser:
    """One browser process and one tab."""

    def __init__(self, program, folder):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
        line = [program, *arguments, *quiet, f"--user-data-dir={folder}", "about:blank"]

        def descriptors():
            high = os.dup(commands), os.dup(answers)  # copies that dup2 below cannot overwrite
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            line, preexec_fn=descriptors, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands), os.close(answers)
        self._buffer, self._number, self._session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _read(self):
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError("the browser has closed its pipe")
            self._buffer += part
        document, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(document)

    def call(self, method, **parameters):
        """Sends a command and returns its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, name):
        """Waits for an event."""
        while not any(event.get("method") == name for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression):
        """The value of a JavaScript expression, run by the tool, not by the page."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def close(self):
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        os.close(self._commands), os.close(self._answers)


@contextmanager
def browser():
    """A browser with a profile of its own that leaves nothing behind."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        opened = Browser(chromium(), folder)
        try:
            yield opened
        finally:
            opened.close()


def open_page(path, width, height=900):
    """Opens a file in a window of the given width and tells what was Seen; the picture is of the whole page."""
    with browser() as tab:
        for domain in ("Page", "Network", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        phone = width < 600
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        tab.events.clear()
        tab.call("Page.navigate", url=path.absolute().as_uri())
        tab.wait("Page.loadEventFired")
        tab.evaluate("Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
        images = "[...document.images].filter(i => !i.naturalWidth).length"
        size = [tab.evaluate(f"document.documentElement.scroll{side}") for side in ("Width", "Height")]
        clip = {"x": 0, "y": 0, "width": width, "height": size[1], "scale": 1}
        shot = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        broken, text = tab.evaluate(images), tab.evaluate("document.body.innerText")
        events = [(event["method"], event.get("params", {})) for event in tab.events if "method" in event]
    requests = [p["request"]["url"] for name, p in events if name == "Network.requestWillBeSent"]
    messages = [p["entry"]["text"] for name, p in events if name == "Log.entryAdded"]
    messages += [str(p["args"]) for name, p in events if name == "Runtime.consoleAPICalled"]
    messages += [p["exceptionDetails"]["text"] for name, p in events if name == "Runtime.exceptionThrown"]
    return Seen(requests, messages, size[0], text, broken, base64.b64decode(shot["data"]))
