"""Pages are inert and show what they were given; figures draw what was measured and nothing else; numbers carry their errors."""

import base64
import errno
import itertools
import math
import os
import re
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from unittest import mock

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb

import nearzero as nz
from conftest import pictures, tree
from nearzero.diagnostics.lipschitz import LipschitzCurve
from nearzero.diagnostics.probe import Timesteps
from nearzero.errors import DiskError
from nearzero.files import png
from nearzero.report import diagnosis, figures
from nearzero.report.page import Page, Picture, Section, Table

law = settings(deadline=None, derandomize=True, max_examples=25)
F64 = torch.float64
DDPM = nz.DiscreteVP.linear()
PLAIN = nz.Timestep(1000)
SHARED = nz.Shared(PLAIN, interval=100, cells=5)
EDGES = [19, 39, 59, 79, 99]  # K is 0 at the other timesteps below 100
PNG = png(pictures(1, 4).pixels[0])
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><title>"&amp;\'</title></svg>'


class Ripple(torch.nn.Module):
    """An answer that changes with the condition."""

    def forward(self, x, c):
        return torch.sin(3 * x + c.reshape(-1, *(1,) * (x.ndim - 1)) / 150)


class Silent(torch.nn.Module):
    """F = 0, as a network with a zero-initialised last layer answers before training."""

    def forward(self, x, c):
        return torch.zeros_like(x)


def diagnosed(conditioning, count=3, network=None, process=DDPM, **options):
    x0 = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    denoiser = nz.Denoiser(network or Ripple(), process, nz.Velocity(), conditioning)
    return nz.diagnose(denoiser, x0, **{"every": 100, **options})


@pytest.fixture(scope="module")
def plain():
    """A network that is told every timestep."""
    return diagnosed(PLAIN)


@pytest.fixture(scope="module")
def shared():
    """The same network, told one condition for each of five cells of 20 timesteps."""
    return diagnosed(SHARED)


@pytest.fixture(scope="module")
def silent():
    """A network whose answer is 0 everywhere, so that K is."""
    return diagnosed(PLAIN, network=Silent())


# The page: what it holds


class Node:
    """An element of a page: its attributes in order, its own text, its children."""

    def __init__(self, tag, attributes):
        self.tag, self.pairs, self.children, self.text = tag, attributes, [], ""
        self.attributes = dict(attributes)
        assert len(self.attributes) == len(attributes), f"an attribute of <{tag}> stands twice"

    def all(self, tag=None):
        found = [self] if tag in (None, self.tag) else []
        return found + [node for child in self.children for node in child.all(tag)]

    def outline(self):
        """Elements and names of attributes, without any text or value."""
        return self.tag, [name for name, _ in self.pairs], [child.outline() for child in self.children]


class Parsed(HTMLParser):
    """A tree of elements that are all closed, and whatever else a page holds."""

    VOID = ("meta", "link", "img")

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.root, self.declarations, self.other = Node("", []), [], []
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert self.open == [self.root] and self.other == []

    def handle_starttag(self, tag, attrs):
        node = Node(tag, attrs)
        self.open[-1].children.append(node)
        if tag not in self.VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].text += data

    def handle_decl(self, decl):
        self.declarations.append(decl)

    def handle_comment(self, data):
        self.other.append(data)

    handle_pi = unknown_decl = handle_comment


FIELDS = 21


def filled(strings):
    """A page with one of everything, each of its strings another one."""
    s = list(strings)
    return Page(
        title=s[0],
        lead=s[1:3],
        sections=[
            Section(
                title=s[3],
                text=s[4:6],
                pictures=[Picture(PNG, s[6], s[7], pixels=True), Picture(SVG, s[8], s[9])],
                tables=[Table(s[10:12], [s[12:14], s[14:16]], s[16])],
                items=s[17:19],
                commands=s[19],
            )
        ],
        origin=s[20],
    )


def shown(html):
    """The strings of a page made by `filled`, each taken from where it belongs."""
    root = Parsed(html).root

    def texts(tag, parent=root, **attributes):
        return [node.text for node in parent.all(tag) if attributes.items() <= node.attributes.items()]

    (section,), (footer,) = root.all("section"), texts("footer")
    images = [node.attributes["alt"] for node in section.all("img")]
    captions = texts("figcaption")
    (caption,), (region,) = texts("caption"), [node for node in root.all("div") if "aria-label" in node.attributes]
    body = [cell for row in section.all("tbody")[0].all("tr") for cell in row.children]
    assert [cell.tag for cell in body] == ["th", "td"] * 2
    assert texts("title") == texts("h1") and region.attributes["aria-label"] == caption
    end = f" · nearzero {nz.__version__}"
    assert footer.endswith(end)
    return [
        *texts("h1"),
        *texts("p", **{"class": "lead"}),
        *texts("h2"),
        *texts("p", section),
        *(string for pair in zip(images, captions, strict=True) for string in pair),
        *texts("th", scope="col"),
        *(cell.text for cell in body),
        caption,
        *texts("li"),
        *texts("code"),
        footer.removesuffix(end),
    ]


PLAIN_OUTLINE = Parsed(filled(["x"] * FIELDS).html()).root.outline()

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></textarea><h1>",
    "<!-- --><![CDATA[<?php",
    "{{7*7}}{% raw %}{# #}",
    "${7*7}",
    "&lt;b&gt;&amp;amp;&#60;&quot",
    "javascript:alert(1)",
    "runs/" + os.fsdecode(b"\xff\xfe<b>"),
    " line\r\n\tnext\n\n ",
    "Zürich 猫 \u202e",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_every_string_of_a_page_is_text(hostile):
    """A hostile string in any field changes no element and no attribute of the page, and comes back from its place, character by character."""
    strings = [f"{hostile}{i}" for i in range(FIELDS)]
    html = filled(strings).html()
    assert Parsed(html).root.outline() == PLAIN_OUTLINE
    assert shown(html) == strings


texts = st.text(st.sampled_from("<>&\"'`={}%#$/\\-!;x \n\0\x1b\u2028") | st.characters(), min_size=1, max_size=12)


@law
@given(st.lists(texts, min_size=FIELDS, max_size=FIELDS))
def test_any_string_of_a_page_is_text(strings):
    """The same for strings of any characters, lone surrogates included."""
    html = filled(strings).html()
    assert Parsed(html).root.outline() == PLAIN_OUTLINE
    assert shown(html) == strings


def test_what_is_empty_leaves_nothing():
    """A page without sections, and a section without content, leave no empty table, list, picture frame or command behind."""
    html = Page("a", (), (Section("b"),)).html()
    root = Parsed(html).root
    assert not any(root.all(tag) for tag in ("figure", "table", "ul", "pre", "div", "p"))
    assert root.all("footer")[0].text == f"nearzero {nz.__version__}"
    assert not Parsed(Page("a", (), ()).html()).root.all("section")
    table = Page("a", (), (Section("b", tables=[Table(("c",), [])]),)).html()
    (region,) = Parsed(table).root.all("div")
    assert region.attributes["aria-label"] == "b" and not region.all("caption")


def test_a_page_forbids_scripts_and_requests():
    """One Content-Security-Policy, before anything that it governs: nothing by default, pictures from data alone, styles from the page, no script."""
    head = Parsed(filled(HOSTILE + ["x"] * (FIELDS - len(HOSTILE))).html()).root.all("head")[0].children
    policies = [node for node in head if "http-equiv" in node.attributes]
    assert [node.attributes["http-equiv"].lower() for node in policies] == ["content-security-policy"]
    assert all(node.tag == "meta" for node in head[: head.index(policies[0])])
    rules = [rule.split() for rule in policies[0].attributes["content"].split(";")]
    assert {name: sources for name, *sources in rules} == {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "style-src": ["'unsafe-inline'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }


def inert(root):
    """Whether nothing in a page runs, refreshes, or asks for anything."""
    active = "script iframe object embed base form svg math template video audio source frame portal".split()
    assert not any(root.all(tag) for tag in active)
    for node in root.all():
        for name, value in node.pairs:
            assert not name.startswith("on") and name not in ("style", "srcset", "action", "background", "ping")
            if name in ("src", "href"):
                assert value.startswith("data:")
    assert [node.attributes for node in root.all("link")] == [{"rel": "icon", "href": "data:,"}]
    assert not any(node.attributes.get("http-equiv", "").lower() == "refresh" for node in root.all("meta"))
    assert not re.search(r"url\(|@import|expression", root.all("style")[0].text)


def test_a_page_asks_for_nothing():
    """No script, frame or form, no handler, no address but data, no import in its style; no http(s) address anywhere in its source."""
    html = filled(["x"] * FIELDS).html()
    inert(Parsed(html).root)
    assert not re.search("https?:|//", re.sub(r"base64,[^\"]*", "", html.replace('http-equiv="', "")))
    inert(Parsed(filled(HOSTILE + ["x"] * (FIELDS - len(HOSTILE))).html()).root)


def test_pictures_are_their_bytes():
    """A picture's address is a data URI of its kind whose content is the picture, byte for byte."""
    images = Parsed(filled(["x"] * FIELDS).html()).root.all("img")
    for node, kind, content in zip(images, ("image/png", "image/svg+xml"), (PNG, SVG), strict=True):
        head, body = node.attributes["src"].split(",")
        assert head == f"data:{kind};base64" and base64.b64decode(body, validate=True) == content


def test_enlarged_pixels_stay_square():
    """`pixels` alone gives a picture the class that keeps its pixels square, and the style has a rule for it."""
    root = Parsed(filled(["x"] * FIELDS).html()).root
    assert [node.attributes.get("class") for node in root.all("img")] == ["pixels", None]
    assert "img.pixels { image-rendering: pixelated; }" in root.all("style")[0].text


def test_a_page_is_in_order():
    """A page is HTML in English, UTF-8, with one h1, then one h2 for each section in the given order, and nothing deeper; every picture has a text and a caption."""
    sections = [Section(f"section {i}", pictures=[Picture(PNG, f"alt {i}", f"caption {i}")]) for i in range(3)]
    parsed = Parsed(Page("title", ("lead",), sections).html())
    (html,) = parsed.root.children
    assert parsed.declarations == ["doctype html"] and html.tag == "html" and html.attributes["lang"] == "en"
    assert html.all("meta")[0].attributes == {"charset": "utf-8"}
    headings = [(node.tag, node.text) for node in html.all() if re.fullmatch("h[1-6]", node.tag)]
    assert headings == [("h1", "title"), *(("h2", f"section {i}") for i in range(3))]
    figures = [[(node.tag, node.attributes.get("alt", node.text)) for node in f.children] for f in html.all("figure")]
    assert figures == [[("img", f"alt {i}"), ("figcaption", f"caption {i}")] for i in range(3)]


def test_a_table_is_its_rows():
    """Header cells name columns, the first cell of each row names the row, and every row has the header's width, in the given order."""
    rows = [(f"{i}", f"{i}a", f"{i}b") for i in range(3)]
    (table,) = Parsed(Page("t", (), [Section("s", tables=[Table(("", "a", "b"), rows)])]).html()).root.all("table")
    head, *body = ([(cell.tag, cell.attributes, cell.text) for cell in row.children] for row in table.all("tr"))
    assert head == [("th", {"scope": "col"}, text) for text in ("", "a", "b")]
    for row, cells in zip(rows, body, strict=True):
        assert cells == [("th", {"scope": "row"}, row[0]), *(("td", {}, text) for text in row[1:])]


# The page: how it is written


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("kind", ["write", "fsync", "chmod", "replace"])
@pytest.mark.parametrize("old", [None, b"old page"], ids=["new", "old"])
def test_a_killed_page_is_the_old_one_or_the_new(tmp_path, faults, kind, error, old):
    """At whichever write, fsync, chmod or replace it is stopped, the page is the old or the new one, nothing else stays, and a full disk is a DiskError."""
    path, page = tmp_path / "page.html", filled(HOSTILE + ["x"] * (FIELDS - len(HOSTILE)))
    if old is not None:
        path.write_bytes(old)
    before, after = tree(tmp_path), {"page.html": page.html().encode("utf-8", "backslashreplace")}
    failed = 0
    for at in range(1, 10):
        faults.arm(kind, at, error)
        try:
            page.write(path)
            break
        except (DiskError, KeyboardInterrupt) as raised:
            failed += 1
            assert isinstance(raised, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt)
            assert tree(tmp_path) in (before, after)
        finally:
            faults.disarm()
    assert failed >= 1 and tree(tmp_path) == after


def test_a_written_page_is_utf_8(tmp_path):
    """The file is strict UTF-8 with the page's characters; of a file name that is no UTF-8 it shows the bytes as escapes, as text."""
    strings = ["Zürich 猫 <b>"] * (FIELDS - 1) + ["runs/" + os.fsdecode(b"\xff<")]
    filled(strings).write(tmp_path / "new/page.html")
    html = (tmp_path / "new/page.html").read_bytes().decode("utf-8")
    assert shown(html) == strings[:-1] + [r"runs/\udcff<"]
    assert Parsed(html).root.outline() == PLAIN_OUTLINE


# Figures: pictures that are safe, whole and repeatable


XLINK = "{http://www.w3.org/1999/xlink}href"
SPACE = "{http://www.w3.org/2000/svg}"


def safe(svg):
    """The root of an SVG that was checked: well-formed, nothing that runs or asks, no coordinate that is no number."""
    assert b"<!ENTITY" not in svg and b"<?xml-stylesheet" not in svg
    root = ET.fromstring(svg)
    assert root.tag == f"{SPACE}svg"
    for node in root.iter():
        name = node.tag.split("}")[1]
        assert name not in ("script", "foreignObject", "a", "animate", "set", "iframe", "image", "feImage")
        for key, value in node.attrib.items():
            assert not key.lower().startswith("on")
            if key.endswith("href"):
                assert key == XLINK and value.startswith("#")
            assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", value))
            if name in ("path", "use", "g") and key in ("d", "x", "y", "transform"):
                assert not re.search("nan|inf", value, re.IGNORECASE)
        if name == "style":
            assert not re.search(r"url\(|@import", node.text)
    return root


def curves(found):
    return {name: one.lipschitz for name, one in found.items()}


POINTS = [(10, 0.9), (20, 0.3), (30, 0.05), (40, 0.2)]
FIGURES = {
    "near_zero": lambda found: figures.near_zero(curves(found), 0.1),
    "near_zero, told": lambda found: figures.near_zero(
        curves(found), 0.1, told={name: one.told for name, one in found.items()}, first=2
    ),
    "whole_range": lambda found: figures.whole_range(curves(found)),
    "exponents": lambda found: figures.exponents(
        {name: one.lipschitz.between(0.1, 1.0) for name, one in found.items()}, 0.15, first=1
    ),
    "noise_levels": lambda found: figures.noise_levels(found),
    "perturbations": lambda found: figures.perturbations(found),
    "losses": lambda found: figures.losses(dict.fromkeys(found, POINTS)),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


@every_figure
def test_a_figure_is_an_inert_svg_and_the_same_each_time(draw, plain, shared):
    """Each figure of two networks, one with zeros of K: well-formed, inert, of the same bytes when drawn again, without a date, and matplotlib's settings stay."""
    found, before = {"a": plain, "b": shared}, dict(matplotlib.rcParams)
    svg = draw(found)
    root = safe(svg)
    assert draw(found) == svg
    assert not [node for node in root.iter() if node.tag.endswith("}date")]
    assert dict(matplotlib.rcParams) == before


@every_figure
def test_a_figure_of_one_image_is_drawn(draw):
    """One image has no error bars: the figure is drawn without them, and without a coordinate that is no number."""
    one = diagnosed(SHARED, 1)
    assert bool(one.lipschitz.stderr.isnan().all()) and bool(one.perturbation.stderr.isnan().all())
    safe(draw({"a": one}))


def test_a_noise_level_without_end_is_left_out():
    """Where alpha reaches 0 sigma / alpha is infinite: the figure is drawn without that point."""
    found = diagnosed(nz.Time(), 1, process=nz.LinearVP(0.1, 4000.0), interval=1.0)
    assert math.isinf(found.losses.noise[-1].item())
    safe(figures.noise_levels({"a": found}))


def written(svg):
    """The glyphs of each text of a figure, in the figure's order, as a list of references."""
    groups = [node for node in safe(svg).iter(f"{SPACE}g") if node.get("id", "").startswith("text_")]
    return [[use.get(XLINK) for use in group.iter(f"{SPACE}use")] for group in groups]


def spells(glyphs, name):
    """Whether glyphs repeat exactly where the characters of a name do."""
    return len(glyphs) == len(name) and all(
        (glyphs[i] == glyphs[j]) == (name[i] == name[j]) for i, j in itertools.combinations(range(len(name)), 2)
    )


NAMES = ["$a_b$c_d", "$\\frac{1}{2}$", "$$xy$$", "x<y>&\"z'<b>", "--x--", "%%s{{0}}%%\\", "]]>-->", "runs/etsdm_2"]


def test_names_are_drawn_literally(plain):
    """A name in a legend is one glyph for each of its characters: dollars, underscores and angle brackets are no markup."""
    for svg in (
        figures.losses(dict.fromkeys(NAMES, POINTS)),
        figures.whole_range(dict.fromkeys(NAMES, plain.lipschitz)),
    ):
        glyphs = written(svg)
        for name in NAMES:
            assert sum(spells(one, name) for one in glyphs) == 1, name


def test_a_name_may_begin_with_an_underscore(plain):
    """Runs may lie in _old and _new: both stand in the legend of each figure that has one."""
    found = {"_oo_ll_o": plain, "_e_nn_ee": plain}
    for draw in FIGURES.values():
        glyphs = written(draw(found))
        for name in found:
            places = [one[i : i + len(name)] for one in glyphs for i in range(len(one) - len(name) + 1)]
            assert any(spells(place, name) for place in places)


def test_a_name_may_be_no_utf_8(plain):
    """A folder whose name is no UTF-8 has figures, as it has a page."""
    name = "runs/" + os.fsdecode(b"\xff")
    for draw in FIGURES.values():
        safe(draw({name: plain}))


# Figures: what they draw


@contextmanager
def drawing():
    """Figures are handed out instead of rendered."""
    with mock.patch.object(figures, "_svg", lambda figure: figure):
        yield


def curve_of(values, start=0, stderr=0.0):
    """K at the timesteps from `start` on, of 1000."""
    k = torch.arange(start, start + len(values), dtype=F64)
    value = torch.tensor(values, dtype=F64)
    return LipschitzCurve((k + 1) / 1000, value, stderr * value, (k + 2) / 1000, Timesteps(nz.LinearVP()))


def lines(axes, color):
    """The lines of one colour: lists of (x, y) as given to the axes."""
    return [
        list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.lines
        if to_hex(line.get_color()) == to_hex(color)
    ]


def drawn_K(axes, color):
    """What a reader sees of a curve: points on lines with a neighbour, pairs that a line joins, stems, and markers."""
    joined, points = set(), {}
    for line, xy in zip(
        [one for one in axes.lines if to_hex(one.get_color()) == to_hex(color)], lines(axes, color), strict=True
    ):
        finite = [not math.isnan(y) for _, y in xy]
        points |= {
            x: y for (x, y), here in zip(xy, finite, strict=True) if here and line.get_marker() not in ("", None)
        }
        if line.get_linestyle() not in ("None", "", " "):
            for (a, there), (b, here) in itertools.pairwise(zip(xy, finite, strict=True)):
                if there and here:
                    joined.add((a[0], b[0]))
                    points |= {a[0]: a[1], b[0]: b[1]}
    stems = {}
    for one in axes.collections:
        if type(one).__name__ == "LineCollection":
            for (x, low), (top, high) in one.get_segments():
                assert x == top and low == 0
                stems[x] = high
    return points, joined, stems


values = st.lists(st.sampled_from([0.0, 0.0, 0.0, 1e-6, 0.02, 3.0, 700.0]), min_size=1, max_size=24).filter(any)


@law
@given(values)
def test_zeros_of_K_are_never_drawn(value):
    """On log axes each positive K stands at its place and no zero does: lines join neighbours that are both positive, stems and markers stand where both neighbours are 0, and the band covers no zero."""
    positive = [k for k, v in enumerate(value) if v > 0]
    alone = [k for k in positive if not any(n in positive for n in (k - 1, k + 1))]
    with drawing():
        near = figures.near_zero({"a": curve_of(value, stderr=0.1)}, 0.1).axes[0]
        whole = figures.whole_range({"a": curve_of(value, stderr=0.1)}).axes[0]
    for axes, first in ((near, 0), (whole, 1)):
        points, joined, stems = drawn_K(axes, figures.STYLES[0]["color"])
        at = {round(x - first, 9): y for x, y in points.items()}
        assert at == {k: value[k] for k in positive}
        assert {(round(a - first, 9), round(b - first, 9)) for a, b in joined} == {
            (k, k + 1) for k in positive if k + 1 in positive
        }
        assert {round(x - first, 9): y for x, y in stems.items()} == {k: value[k] for k in alone}
        band = [one for one in axes.collections if type(one).__name__ != "LineCollection"]
        for path in (path for one in band for path in one.get_paths() if len(path.vertices)):
            low, high = path.vertices[:, 0].min() - first, path.vertices[:, 0].max() - first
            assert all(value[k] > 0 for k in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
            assert path.vertices[:, 1].min() > 0


def test_the_svg_itself_shows_no_zero(plain, shared):
    """In the rendered figure the strokes and markers of five cells lie at timesteps 19, 39, 59 and 79, alone, and from 99 on; those of the network that is told every timestep lie everywhere."""
    root = safe(figures.near_zero({"a": plain.lipschitz, "b": shared.lipschitz}, 0.1))
    (axes,) = (node for node in root.iter(f"{SPACE}g") if node.get("id") == "axes_1")
    axes.remove(next(node for node in axes if node.get("id", "").startswith("legend")))
    strokes = {"#0072b2": [], "#d55e00": []}
    for path in axes.iter(f"{SPACE}path"):
        found = re.search(r"stroke: (#\w+)", path.get("style", ""))
        if found and found[1] in strokes and "fill: none" in path.get("style") and path.get("id") is None:
            x = [float(number) for number in re.findall(r"[ML] (\S+) \S+", path.get("d"))]
            assert path.get("d").count("M") == 1
            strokes[found[1]].append((min(x), max(x)))
    ((left, right),) = strokes["#0072b2"]

    def timestep(x):
        return (x - left) / (right - left) * 199

    expected = [(k, k) for k in EDGES[:-1]] + [(99, 199)]
    found = sorted((timestep(a), timestep(b)) for a, b in strokes["#d55e00"])
    assert [pair for one in found for pair in one] == pytest.approx([k for pair in expected for k in pair], abs=0.01)
    markers = sorted(
        timestep(float(use.get("x"))) for use in axes.iter(f"{SPACE}use") if "stroke: #d55e00" in use.get("style", "")
    )
    assert markers == pytest.approx(EDGES[:-1], abs=0.01)


def test_curves_are_drawn_where_they_were_measured(plain, shared):
    """near_zero draws K(k, k+1) at k, up to twice t~ and no further, what is told at k, and t~ between the last timestep before it and the next; whole_range draws at k + 1."""
    found = {"a": plain, "b": shared}
    told = {name: one.told for name, one in found.items()}
    color = figures.STYLES[0]["color"]
    with drawing():
        above, below = figures.near_zero(curves(found), 0.1, told=told).axes
        (whole,) = figures.whole_range(curves(found)).axes
    K = plain.lipschitz
    (line,) = lines(above, color)
    assert [x for x, _ in line] == pytest.approx(range(200), abs=1e-9)
    assert [y for _, y in line] == K.value[:200].tolist()
    for style, name in zip(figures.STYLES, found, strict=False):
        (line,) = lines(below, style["color"])
        assert line == list(enumerate(told[name][:200].tolist()))
    for panel in (above, below):
        assert [x for x, _ in lines(panel, "#595959")[0]] == [99.5, 99.5]
    (line,) = lines(whole, color)
    assert [x for x, _ in line] == pytest.approx((K.times * 1000).tolist(), abs=1e-9)
    assert [y for _, y in line] == K.value.tolist()
    assert above.get_yscale() == whole.get_yscale() == whole.get_xscale() == "log" and above.get_xscale() == "linear"


def test_the_band_is_two_standard_errors():
    """The band of a curve reaches from K - 2 stderr to K + 2 stderr; where that begins below 0, which no log axis shows, from K / 4."""
    K = curve_of([3.0, 1.0, 2.0, 0.5])
    K = replace(K, stderr=torch.tensor([0.5, 0.25, 1.5, 0.25], dtype=F64))
    with drawing():
        (axes,) = figures.whole_range({"a": K}).axes
    (band,) = axes.collections
    reach = {}
    for x, y in band.get_paths()[0].vertices.tolist():
        low, high = reach.get(round(x, 6), (y, y))
        reach[round(x, 6)] = min(low, y), max(high, y)
    assert reach == {1: (2.0, 4.0), 2: (0.5, 1.5), 3: (0.5, 5.0), 4: (0.125, 1.0)}


def test_other_figures_draw_what_was_measured(plain, shared):
    """Losses, noise levels and perturbations stand at their points; bars are two standard errors; the silent network's loss stands beside."""
    found = {"a": plain, "b": shared}
    with drawing():
        levels, moved, trained = (
            draw.axes[0]
            for draw in (figures.noise_levels(found), figures.perturbations(found), figures.losses({"a": POINTS}))
        )
    for style, one in zip(figures.STYLES, found.values(), strict=False):
        loss, error = one.losses, one.perturbation
        assert lines(levels, style["color"]) == [list(zip(loss.noise.tolist(), loss.value.tolist(), strict=True))]
        assert lines(moved, style["color"])[0] == list(zip(error.scales.tolist(), error.value.tolist(), strict=True))
    loss = plain.losses
    assert lines(levels, "#595959") == [list(zip(loss.noise.tolist(), loss.silent.tolist(), strict=True))]
    for container, one in zip(moved.containers, found.values(), strict=True):
        error, (bars,) = one.perturbation, container[2]
        ends = [[y for _, y in segment] for segment in bars.get_segments()]
        assert ends == [
            pytest.approx([v - 2 * e, v + 2 * e])
            for v, e in zip(error.value.tolist(), error.stderr.tolist(), strict=True)
        ]
    assert lines(trained, figures.STYLES[0]["color"]) == [[(step, loss) for step, loss in POINTS]]


@law
@given(st.floats(-2, 2), st.floats(0.01, 100))
def test_the_exponent_of_a_power_law_is_in_the_legend(p, c):
    """K = c (t t')^(-p/2) below t: the legend says p to two digits, and the axis ends where the times do."""
    curve = curve_of([1.0] * 60)
    curve = replace(curve, value=c * (curve.times * curve.until) ** (-p / 2))
    with drawing():
        (axes,) = figures.exponents({"a": curve}, 0.03).axes
    (label,) = (text.get_text() for text in axes.get_legend().get_texts())
    assert abs(float(re.fullmatch(r"a: p = (-?\d+\.\d\d)", label)[1]) - p) <= 0.005 + 1e-9
    assert axes.get_xlim() == (curve.times.min().item(), curve.times.max().item())
    assert [y for _, y in lines(axes, figures.STYLES[0]["color"])[0]] == pytest.approx((curve.value * 1000).tolist())


@law
@given(values, values)
def test_limits_hold_every_positive_K(a, b):
    """limits() lie strictly around each positive K of all curves, near_zero takes them, and so two figures have one axis."""
    first, second = curve_of(a), curve_of(b)
    low, high = figures.limits([first, second], 0.1)
    assert 0 < low < min(v for v in a + b if v > 0) and max(a + b) < high
    with drawing():
        drawn = [figures.near_zero({"x": one}, 0.1, shown=(low, high)).axes[0].get_ylim() for one in (first, second)]
    assert drawn == [(low, high)] * 2


def test_limits_end_at_twice_the_interval():
    """What is not drawn does not stretch the axis: K above twice t~ is no part of the limits."""
    curve = curve_of([1.0] * 20 + [1000.0] * 20)
    assert figures.limits([curve], 0.01) == pytest.approx((1 / 1.6, 1.6))


def luminance(color):
    """Relative luminance, WCAG 2."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_styles_differ_in_colour_and_in_grey():
    """Any two styles differ in colour, in dash and in marker, so that they also differ in grey, and each has a contrast of 3 to 1 to white, WCAG 1.4.11."""
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in figures.STYLES}) == len(figures.STYLES) == 4
    assert all(1.05 / (luminance(style["color"]) + 0.05) >= 3 for style in figures.STYLES)


@every_figure
def test_networks_have_styles_of_their_own(draw, plain, shared):
    """Two networks of a figure have two styles, in the given order from `first` on, and the legend names both, and both axes say what they show."""
    with drawing():
        figure = draw({"network a": plain, "network b": shared})
    first = {FIGURES["near_zero, told"]: 2, FIGURES["exponents"]: 1}.get(draw, 0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [label.strip() for label in labels]
    assert [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()] == labels
    for style, name in zip(figures.STYLES[first:], ("network a", "network b"), strict=False):
        own = [handle for handle, label in zip(handles, labels, strict=True) if label.split(":")[0] == name]
        line = own[-1][0] if isinstance(own[-1], tuple) else own[-1]
        assert to_hex(line.get_color()) == to_hex(style["color"]) and line.get_linestyle() == style["linestyle"]
    assert figure.axes[-1].get_xlabel() and all(axes.get_ylabel() for axes in figure.axes)


def numbers_on(svg, axis):
    """How many ticks of an axis carry a text."""
    groups = [g for g in safe(svg).iter(f"{SPACE}g") if g.get("id", "").startswith(f"matplotlib.axis_{axis}")]
    return len([g for one in groups for g in one.iter(f"{SPACE}g") if g.get("id", "").startswith("text_")]) - 1


@pytest.mark.parametrize("top", [1.05, 3.0, 9.0, 1e4, 1e9])
def test_a_log_axis_has_numbers(top):
    """An axis without numbers has no units: K or a loss between 0.2 and 0.2 `top` shows at least two, whether a power of ten lies between them or not."""
    value = [0.2 * top ** (i / 19) for i in range(20)]
    assert numbers_on(figures.losses({"a": list(enumerate(value))}), 2) >= 2
    assert numbers_on(figures.near_zero({"a": curve_of(value)}, 0.1), 2) >= 2


@pytest.mark.parametrize("exponents", [range(-25, 10), range(10, 26)], ids=["below 1e10", "from 1e10"])
def test_a_power_of_ten_is_short(exponents):
    """A tick says 0.001 to 10000 in full and every other power of ten as 1e<exponent>, without a plus or a leading zero."""
    full = {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100", 3: "1000", 4: "10000"}
    for e in exponents:
        assert figures._power(float(f"1e{e}")) == full.get(e, f"1e{e}")


# A network that never changes its answer


def test_a_silent_network_has_a_page(silent):
    """K = 0 at every timestep, as before any training: the section is made, its figures are drawn without a curve, and the table says 0."""
    assert not bool(silent.lipschitz.value.any())
    section = diagnosis.section({"silent": silent})
    for picture in section.pictures:
        safe(picture.content)
    (table,) = section.tables
    assert table.rows[0][1].split(" ± ")[0] in ("0", "0.00")


def test_a_silent_network_beside_another(plain, silent):
    """Beside a network whose answer moves, one with K = 0 leaves the other's limits and curve as they are."""
    limits = figures.limits([plain.lipschitz, silent.lipschitz], 0.1)
    assert limits == figures.limits([plain.lipschitz], 0.1)
    with drawing():
        (axes,) = figures.near_zero({"a": plain.lipschitz, "b": silent.lipschitz}, 0.1, shown=limits).axes
    assert drawn_K(axes, figures.STYLES[1]["color"]) == ({}, set(), {})


# Numbers


def read(text):
    """(value, half a unit of its last digit, standard error or None, half a unit of its last digit)"""
    parts = []
    for part in text.split(" ± "):
        digits, _, exponent = part.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
        parts += [float(part), unit / 2]
    return (*parts, None, None)[:4]


numbers = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-12)
errors = st.floats(1e-4, 1e4)


@law
@given(numbers)
def test_a_number_alone_has_three_digits(value):
    """Without an error a number is shown to three significant digits: within half a unit of the third, with no more than three."""
    text = diagnosis.number(value)
    shown, _, error, _ = read(text)
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 0
    assert error is None and abs(shown - value) <= unit / 2 * (1 + 1e-9)
    assert len(text.partition("e")[0].replace(".", "").lstrip("-0")) <= 3


@law
@given(numbers, errors)
def test_a_number_has_the_digits_that_its_error_leaves(value, stderr):
    """With an error, both end at the error's second significant digit, or at the ones where the error is larger, and are rounded there."""
    text = diagnosis.number(value, stderr)
    shown, half, error, same = read(text)
    second = 10.0 ** (math.floor(math.log10(stderr)) - 1)
    assert half == same == pytest.approx(min(second, 1.0) / 2, rel=1e-9)
    assert abs(shown - value) <= half * (1 + 1e-6) and abs(error - stderr) <= half * (1 + 1e-6)


@law
@given(st.floats(-1000, 1000), st.floats(-9, 3).map(lambda e: 10.0**e))
def test_rounding_is_small_beside_the_error(value, stderr):
    """However small the error, rounding moves neither the value nor the error by more than a twentieth of it."""
    shown, _, error, _ = read(diagnosis.number(value, stderr))
    assert abs(shown - value) <= stderr / 20 * (1 + 1e-6) + 1e-13 * abs(value)
    assert abs(error - stderr) <= stderr / 20 * (1 + 1e-6)


@law
@given(numbers)
def test_a_number_without_spread_keeps_its_digits(value):
    """An error of exactly 0, as of images that all answer alike, hides no digit: three significant ones stay, and the error reads 0."""
    shown, _, error, _ = read(diagnosis.number(value, 0.0))
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 0
    assert abs(shown - value) <= unit / 2 * (1 + 1e-9) and not error


def test_nothing_has_no_sign():
    """What is rounded to 0 is shown without a minus, as an unbiased distance may be; what is not keeps its own."""
    for value, stderr in itertools.product((-0.0, -1e-5, -0.004), (math.nan, 0.01, 0.5)):
        text = diagnosis.number(value, stderr).split(" ± ")[0]
        assert text.startswith("-") == (float(text) != 0), (value, stderr, text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stderr", [math.nan, 0.1, 0.0])
def test_what_is_not_a_number_is_unknown(value, stderr):
    """A value that is not finite is unknown, whatever its error; an error that is not finite is left out."""
    assert diagnosis.number(value, stderr) == "unknown"
    assert diagnosis.number(1.2345, value) == "1.23"


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (1.2345, 0.0123, "1.234 ± 0.012"),
        (-0.05, 0.2, "-0.05 ± 0.20"),
        (1234.5, 67.8, "1234 ± 68"),
        (5.0, 1.5, "5.0 ± 1.5"),
        (0.00012345, math.nan, "0.000123"),
    ],
)
def test_numbers_as_they_are_read(value, stderr, text):
    """Examples, digit by digit."""
    assert diagnosis.number(value, stderr) == text


# What a page says of diagnoses


def test_a_table_has_one_column_for_each_network(plain, shared):
    """The header names the networks in order; every row is a label and a cell for each; one network's column does not depend on the other."""
    found = {"a<b>": plain, "$b_c": shared}
    table = diagnosis.table(found)
    assert tuple(table.header) == ("", "a<b>", "$b_c")
    assert len(table.rows) == 7 and len({row[0] for row in table.rows}) == 7
    assert all(len(row) == len(table.header) and all(row) for row in table.rows)
    for i, (name, one) in enumerate(found.items(), 1):
        assert [(row[0], row[i]) for row in table.rows] == diagnosis.rows({name: one})


def test_a_table_says_what_was_measured(plain):
    """Each cell is the summary's number with its error; labels name the interval and the scale."""
    s, number = plain.summary(), diagnosis.number
    assert diagnosis.rows({"a": plain}) == [
        ("largest K on [0, 0.1], per timestep", number(s["max"], s["max_stderr"])),
        ("timestep of the largest K", str(s["max_at_timestep"])),
        ("total variation of the answer on [0, 0.1]", number(s["total_variation"])),
        ("largest K measured above 0.1, per timestep", number(s["max_above"])),
        ("change of x0 at t = 0.1 by noise of 0.3 (rms)", number(s["perturbation"], s["perturbation_stderr"])),
        ("loss at the first timestep", number(s["loss_first"])),
        ("mean loss over noise levels", number(s["loss"])),
    ]


def test_a_caption_says_on_what_it_was_measured(plain):
    """The caption states how many images, and what a timestep is where the process has none; nothing else follows."""
    assert diagnosis.table({"a": plain}).caption == "3 images, the same noise for every network. ± one standard error."
    timeless = diagnosed(nz.Time(), 2, process=nz.LinearVP(), every=300)
    caption = diagnosis.table({"a": timeless}).caption
    assert caption.startswith("2 images") and caption.endswith(timeless.unit) and timeless.unit


def test_one_image_has_no_error(plain):
    """Of one image the table gives numbers without an error and none that is nan; above an interval that ends with the range K is unknown."""
    one = diagnosis.rows({"a": diagnosed(PLAIN, 1)})
    assert not any("±" in row[1] or "nan" in row[1] for row in one)
    whole = dict(diagnosis.rows({"a": diagnosed(PLAIN, interval=1.0)}))
    assert whole["largest K measured above 1, per timestep"] == "unknown"


def test_a_section_speaks_of_cells_where_there_are_some(plain, shared):
    """Only where K has zeros does the text speak of cells, and it names the networks that have them."""
    with drawing():
        assert "cell" not in " ".join(diagnosis.section({"DDPM": plain}).text)
        for found in ({"E-TSDM": shared}, {"DDPM": plain, "E-TSDM": shared}, {"E-TSDM": shared, "DDPM": plain}):
            text = diagnosis.section(found).text
            assert [sentence.startswith("E-TSDM shares its condition in cells") for sentence in text] == [False, True]
        assert "one and two" in " ".join(diagnosis.section({"one": shared, "two": shared}).text)


def test_a_page_of_two_networks_is_whole(plain, shared):
    """The page of a diagnosis of networks with hostile names: inert, its four pictures are inert SVG with texts that name both, its table is rows()."""
    found = {HOSTILE[0]: plain, HOSTILE[2]: shared}
    root = Parsed(Page("t", ("l",), (diagnosis.section(found),)).html()).root
    inert(root)
    images = root.all("img")
    assert len(images) == 4 and len({node.attributes["src"] for node in images}) == 4
    for node in images:
        assert all(name in node.attributes["alt"] for name in found)
        head, body = node.attributes["src"].split(",")
        assert head == "data:image/svg+xml;base64"
        safe(base64.b64decode(body, validate=True))
    (table,) = root.all("table")
    head, *body = ([cell.text for cell in row.children] for row in table.all("tr"))
    assert head == ["", *found] and body == [list(row) for row in diagnosis.rows(found)]


def test_two_intervals_are_drawn_whole(plain, shared):
    """Where two networks have two intervals the curves near 0 reach twice the longer one."""
    longer = diagnosed(PLAIN, interval=0.2)
    with drawing():
        figure = diagnosis.near_picture({"a": shared, "b": longer}).content
    assert [x for x, _ in lines(figure.axes[0], "#595959")[0]] == [199.5, 199.5]
    assert lines(figure.axes[0], figures.STYLES[1]["color"])[0][-1][0] == pytest.approx(399, abs=1e-9)


def test_a_network_that_does_not_move_is_drawn_too():
    """K = 0 throughout, as after one step of training: axes without a curve, and no error."""
    still = curve_of([0.0] * 24, stderr=0.0)
    for picture in (figures.whole_range({"a": still}), figures.near_zero({"a": still}, 0.1)):
        assert picture.startswith(b"<?xml")
