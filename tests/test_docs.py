"""The documentation says what is so: its blocks run, its outputs are the real ones, its links and names exist.

The convention. A ```python block is run; the blocks of a page share one namespace and one empty folder, in order. A
```text block directly below a ```python block is all that it prints; without one it prints nothing. A ```console block
holds `$ nearzero ...` lines, each run as the command, with what it prints below it, and `$ echo $?` for its exit code.
Other blocks are not run.

A page names a line of code as `solvers/sde.py:53`, from src/nearzero on, and quotes it: the next thing in backticks on
the same line of the page is a part of line 53, spaces aside. scripts/docs_lines.py puts the numbers right.
"""

import ast
import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import types
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

import nearzero as nz
from nearzero import registry
from nearzero.recipes.table import brief

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/nearzero"
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
HOSTS = {"arxiv.org", "openreview.net", "pytorch.org", "github.com"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOST = re.compile(r"(?:https?://)?((?:[a-z0-9-]+\.)+(?:ai|com|dev|io|net|org))\b", re.IGNORECASE)
every = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def script(name):
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs_lines, recipe_table = script("docs_lines"), script("recipe_table")


def blocks(page):
    """(language, code, line of its first line, output that stands below it) of every fenced block."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for block, after in zip_longest(found, found[1:]):
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


@every
def test_a_named_line_of_code_is_where_the_page_says(page):
    """Every `file.py:LINE` is followed, on its line of the page, by a quote in backticks that this line of code holds."""
    wrong = docs_lines.check(page.read_text(encoding="utf-8"))
    assert not wrong, "\n".join([*wrong, f"lines have moved? This puts the numbers right: {docs_lines.COMMAND}"])


def test_the_papers_page_names_lines():
    """Control: the test above has something to hold, and its failure names a script that exists."""
    assert len(docs_lines.references((ROOT / "docs/papers/etsdm.md").read_text(encoding="utf-8"))) > 50
    assert (ROOT / docs_lines.COMMAND.split()[-1]).is_file()


def test_lines_that_move_are_found_and_put_right(tmp_path):
    """One line more at the top of a file, or one less: every name of a line of it is wrong, and right after mending."""
    text = docs_lines.mend((ROOT / "docs/papers/etsdm.md").read_text(encoding="utf-8"))[0]
    named = docs_lines.references(text)
    for add in (["# one more"], []):
        for file in {reference.file for reference in named}:
            lines = (SOURCE / file).read_text(encoding="utf-8").split("\n")
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("\n".join(add + lines if add else lines[1:]), encoding="utf-8")
        assert len(docs_lines.check(text, tmp_path)) == len(named)
        mended, moved, wrong = docs_lines.mend(text, tmp_path)
        assert (len(moved), wrong, docs_lines.check(mended, tmp_path)) == (len(named), [], [])
        there = [int(reference.number) for reference in docs_lines.references(mended)]
        assert there == [int(reference.number) + (1 if add else -1) for reference in named]


CODE = """def f(t):
    a =  t + 1
    return a


def g(t):
    b = t
    b = t
    return a
"""


@pytest.fixture
def house(tmp_path):
    """A repository with one file, axis/code.py."""
    (tmp_path / "src/nearzero/axis").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "src/nearzero/axis/code.py").write_text(CODE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("| x | `axis/code.py:2` | `a = t + 1` |", None),  # right; spaces count as one
        ("see `axis/code.py:9`, `return a`, and `axis/code.py:3`: `return  a`", None),
        ("| x | `axis/code.py:3` | `a = t + 1` |", "| x | `axis/code.py:2` | `a = t + 1` |"),
        ("`axis/code.py:1` `a = t + 1` `axis/code.py:12` `g(t)`", "`axis/code.py:2` `a = t + 1` `axis/code.py:6` `g(t)`"),
        ("`axis/code.py:5` `return a`", "`axis/code.py:3` `return a`"),  # the nearest of lines 3 and 9
        ("`axis/code.py:100` `return a`", "`axis/code.py:9` `return a`"),
        ("```\n`axis/code.py:3`\n```\n`a`: `axis/code.py:7`, `def g`", "```\n`axis/code.py:3`\n```\n`a`: `axis/code.py:6`, `def g`"),
        ("`axis/code.py`, `tests/code.py::test_f` and `4:3` name no line", None),
    ],
)  # fmt: skip
def test_a_number_follows_its_quote(house, capsys, text, mended):
    """The script rewrites wrong numbers and nothing else; then the checker is content and the script changes nothing."""
    page, source = house / "docs/page.md", house / "src/nearzero"
    page.write_text(text, encoding="utf-8")
    assert bool(docs_lines.check(text, source)) == (mended is not None)
    assert docs_lines.main(house) == 0
    assert page.read_text(encoding="utf-8") == (mended or text)
    assert capsys.readouterr().out.startswith("docs/page.md: `axis/code.py:" if mended else "")
    assert docs_lines.check(page.read_text(encoding="utf-8"), source) == []
    assert docs_lines.main(house) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("`axis/code.py:3`", "has no quote"),
        ("`axis/code.py:3`\n`return a`", "has no quote"),  # on the next line of the page
        ("`axis/code.py:3` `axis/code.py:2` `a = t + 1`", "has no quote"),
        ("`axis/code.py:2-3` `a = t + 1`", "is not one line"),
        ("`axis/code.py:2` `a = t + 2`", "no line of the file holds `a = t + 2`"),
        ("`axis/none.py:2` `a = t + 1`", "there is no such file"),
        ("`axis/code.py:6` `return a`", "lines 9 and 3 are as near"),
    ],
)
def test_what_a_script_cannot_mend_is_an_error(house, capsys, text, message):
    """It is left as it is, named with its page, and the exit code is 1."""
    page = house / "docs/page.md"
    page.write_text(text, encoding="utf-8")
    assert len(docs_lines.check(text, house / "src/nearzero")) == 1
    assert docs_lines.main(house) == 1
    out, err = capsys.readouterr()
    assert (out, page.read_text(encoding="utf-8")) == ("", text)
    assert err.startswith("docs/page.md: `axis/") and message in err and err.count("\n") == 1


def test_a_quote_must_tell_its_line_from_the_next(house):
    """A quote that the line above or below holds too would not notice a move by one."""
    for number in (7, 8):
        (wrong,) = docs_lines.check(f"`axis/code.py:{number}` `b = t`", house / "src/nearzero")
        assert "quote more" in wrong


def test_the_table_of_recipes_is_that_of_the_code():
    """docs/table1.md is what the script makes of the recipes: a row for each, in their order."""
    text = (ROOT / recipe_table.PAGE).read_text(encoding="utf-8")
    assert text == recipe_table.page(), f"the table is stale; this writes it: {recipe_table.COMMAND}"
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == list(nz.recipes.RECIPES)
    assert (ROOT / recipe_table.COMMAND.split()[-1]).is_file()


def test_a_stale_table_is_written_anew(tmp_path):
    """Whatever the page was, the script writes the table of now, and a second time changes nothing."""
    page = tmp_path / recipe_table.PAGE
    page.parent.mkdir()
    page.write_text("stale", encoding="utf-8")
    for _ in range(2):
        assert recipe_table.main(tmp_path) == 0
        assert page.read_text(encoding="utf-8") == recipe_table.page()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (nz.DiscreteVP.linear(), "DiscreteVP.linear()"),
        (nz.DiscreteVP.quadratic(10, beta_end=0.012), "DiscreteVP.quadratic(steps=10, beta_end=0.012)"),
        (nz.DiscreteVP.from_betas([0.1, 0.2]), "DiscreteVP.from_betas((0.1, 0.2))"),
        (nz.ZeroTerminalSNR(nz.LinearVP(0.0)), "ZeroTerminalSNR(LinearVP(beta_min=0))"),
        (nz.Shared(nz.Time(9.0), interval=0.1, cells=5), "Shared(Time(scale=9), interval=0.1, cells=5)"),
        (nz.Ancestral("lower"), "Ancestral(variance='lower')"),
    ],
)
def test_the_table_shows_objects_as_python(value, text):
    """Every object of the table is the expression that makes it, and evaluates to an equal one."""
    assert brief(value) == text
    assert eval(text, {name: getattr(nz, name) for name in nz.__all__}) == value


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
