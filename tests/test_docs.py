"""The documentation says what is so: its blocks run, its outputs are the real ones, its links and names exist.

The convention. A ```python block is run; the blocks of a page share one namespace and one empty folder, in order. A
```text block directly below a ```python block is all that it prints; without one it prints nothing. A ```console block
holds `$ nearzero ...` lines, each run as the command, with what it prints below it, and `$ echo $?` for its exit code.
Other blocks are not run.
"""

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import nearzero as nz
from nearzero import registry

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
HOSTS = {"arxiv.org", "openreview.net", "pytorch.org", "github.com"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOST = re.compile(r"(?:https?://)?((?:[a-z0-9-]+\.)+(?:ai|com|dev|io|net|org))\b", re.IGNORECASE)
every = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page):
    """(language, code, line of its first line, output that stands below it) of every fenced block."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for block, after in zip(found, [*found[1:], None], strict=True):
        told = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
        yield block[1], block[2], text[: block.start(2)].count("\n") + 1, after[2] if told else ""


def prose(page):
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def console(code):
    """(command line, output) of every `$` line of a console block."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield line, output


def command(line):
    """What `nearzero ...` prints, on both streams, and its exit code."""
    from nearzero.cli import run

    name, *arguments = shlex.split(line)
    assert name == "nearzero", f"a console block runs nearzero, not {name}"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run(arguments)
    return out.getvalue(), code


@pytest.fixture
def guest(monkeypatch, tmp_path):
    """A module in an empty folder, whose registered classes and random numbers leave with it."""
    module = types.ModuleType("guest")
    monkeypatch.setitem(sys.modules, "guest", module)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield vars(module)
    for name, cls in list(registry._CLASSES.items()):
        if cls.__module__ == "guest":
            del registry._CLASSES[name]


@every
def test_the_blocks_run_and_print_what_the_page_says(page, guest):
    """Every python and console block runs, and prints the text that stands below it."""
    code = 0
    for language, source, line, expected in blocks(page):
        if language == "python":
            padded = "\n" * (line - 1) + source  # errors name the page and its line
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(padded, str(page), "exec"), guest)
            assert out.getvalue() == expected, f"{page}:{line}"
        elif language == "console":
            for typed, expected in console(source):
                if typed == "echo $?":
                    assert expected.strip() == str(code), f"{page}:{line}"
                    continue
                printed, code = command(typed)
                assert printed == expected, f"{page}:{line}: {typed}"


def anchor(heading):
    """A heading's anchor, as mkdocs makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@every
def test_links_lead_somewhere(page):
    """Every relative link and picture is a file of the repository, and every #anchor a heading of the page it names."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        name, _, section = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if section:
            assert section in {anchor(title) for title in re.findall(r"^#+ (.+)$", prose(there), re.MULTILINE)}, target


@every
def test_named_files_and_tests_exist(page):
    """`tests/test_x.py::test_y` names a function of that file, and every other path in backticks a file or folder."""
    named = re.findall(r"`((?:src|tests|docs|scripts|\.ci)/[\w./-]+)(?:::(\w+))?`", page.read_text(encoding="utf-8"))
    for path, function in named:
        assert (ROOT / path).exists(), path
        if function:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, function


@every
def test_named_objects_exist(page):
    """Every `nz.name` of a page, in prose or code, is a public name."""
    for name in set(re.findall(r"\bnz\.([A-Za-z_]\w*)", page.read_text(encoding="utf-8"))):
        assert name in nz.__all__, name


@every
def test_only_papers_and_their_code_are_linked(page):
    """The pages name no host but those of papers, PyTorch and GitHub."""
    assert {host.lower() for host in HOST.findall(page.read_text(encoding="utf-8"))} <= HOSTS


class Requests(HTMLParser):
    """The addresses that a browser asks for when it shows a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag != "a":
            self.found += [attrs[name] for name in ("src", "srcset", "href", "data", "poster") if attrs.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    """mkdocs build --strict: every page is in the navigation and every link and anchor resolves."""
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in PAGES if path.is_relative_to(ROOT / "docs")}
    for page in pages:
        assert (site / (page.parent if page.name == "index" else page) / "index.html").is_file()


def test_the_site_asks_no_other_host(site):
    """No script, style sheet, font, picture or frame of a built page comes from another host."""
    for path in site.rglob("*.html"):
        requests = Requests()
        requests.feed(path.read_text(encoding="utf-8"))
        assert requests.found
        assert [address for address in requests.found if re.match(r"(https?:)?//", address)] == []
    for path in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", path.read_text(encoding="utf-8")) == []
