"""Figures as SVG: a file, or a part of a page that obeys its colours and its security policy."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from dwsep_zoo.report.figures.panel import POINTS, Drawing, context
from dwsep_zoo.report.figures.style import THEME

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
NAMES = {light: name for name, (light, _) in THEME.items()}
DROPPED = {"font-family"}  # the page's own


def document(drawing: Drawing) -> str:
    """A file that stands alone; marks have their texts as titles."""
    root = _tree(drawing)
    root.attrib |= {"xmlns": SVG, "xmlns:xlink": XLINK}
    return ET.tostring(root, encoding="unicode") + "\n"


def inline(drawing: Drawing, prefix: str, rows: Sequence[str]) -> str:
    """A part of a page.

    Colours become the classes of ``rules``, other styles attributes: the policy of the page forbids
    inline styles. Marks can be reached with the keyboard, so that the figure is a group and each
    mark an image.

    Args:
        drawing: a panel alone.
        prefix: of all ids.
        rows: the ``data-row`` of each row of the marks.
    """
    root = _tree(drawing, transparent=True)
    groups = {element.get("id"): element for element in root.iter("g")}
    for number, mark in enumerate(drawing.marks):
        if (group := groups.get(f"mark{number}")) is not None:
            group.attrib |= {"class": "mark", "role": "img", "data-tip": ""}
            if mark.row is not None:
                group.set("data-row", rows[mark.row])
    root.attrib = {
        "class": "plot",
        "viewBox": root.attrib["viewBox"],
        "role": "group",
        "stroke-linejoin": root.attrib["stroke-linejoin"],
    }
    for tag, text in (("desc", drawing.note), ("title", drawing.title)):
        part = ET.Element(tag)
        part.text = text
        root.insert(0, part)
    return _cleaned(root, prefix)


def swatch(handle: Artist, prefix: str) -> str:
    """The handle of a legend as a small picture."""
    with context():
        figure = Figure((22 / POINTS, 14 / POINTS))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 22), ylim=(0, 14))
        axes.set_axis_off()
        if isinstance(handle, Patch):
            axes.add_patch(Rectangle((3, 1), 16, 12, color=handle.get_facecolor()))
        elif isinstance(handle, Line2D):
            is_line = handle.get_linestyle() != "None"
            (line,) = axes.plot([1, 21] if is_line else [11], [7, 7] if is_line else [7])
            line.update_from(handle)
    root = _tree(Drawing(figure, (), ""), transparent=True)
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true", "class": "key"}
    return _cleaned(root, prefix)


def rules() -> str:
    """The style sheet of the colours, light and dark."""
    light, dark = (
        "".join(f"--{name}:{pair[side]};" for name, pair in THEME.items()) for side in (0, 1)
    )
    classes = "".join(
        f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in THEME
    )
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
    )


def _tree(drawing: Drawing, *, transparent: bool = False) -> ET.Element:
    """Matplotlib's SVG without namespaces and metadata, with the titles of marks."""
    for number, mark in enumerate(drawing.marks):
        mark.artist.set_gid(f"mark{number}")
    stream = io.StringIO()
    with context():
        drawing.figure.savefig(
            stream, format="svg", transparent=transparent, metadata={"Date": None}
        )
    root = ET.fromstring(stream.getvalue())
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        if link := element.attrib.pop(f"{{{XLINK}}}href", None):
            element.set("xlink:href", link)
        if element.tag != "text":
            element.text = None
        element.tail = None
        for name in {"d", "x", "y", "transform"} & element.attrib.keys():
            short = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", element.attrib[name])
            element.set(name, " ".join(short.split()))
    for child in list(root):
        if child.tag.endswith("metadata") or child.find("style") is not None:
            root.remove(child)  # the page's policy forbids a style sheet within
    root.set("stroke-linejoin", "round")
    groups = {element.get("id"): element for element in root.iter("g")}
    for number, mark in enumerate(drawing.marks):
        if (group := groups.get(f"mark{number}")) is not None:
            title = ET.Element("title")
            title.text = mark.text
            group.insert(0, title)
    return root


def _cleaned(root: ET.Element, prefix: str) -> str:
    """The text of a tree whose styles are classes and attributes, and whose ids are its own."""
    for parent in list(root.iter()):
        for child in list(parent):
            if parent.tag == "defs":  # a marker has the style of its use
                child.attrib.pop("style", None)
            else:
                _restyle(child)
            if child.get("fill") == "none" and not _is_stroked(child):  # the background
                parent.remove(child)
    text = " ".join(value for element in root.iter() for value in element.attrib.values())
    names = {
        name: f"{prefix}{n}" for n, name in enumerate(dict.fromkeys(re.findall(r"#([\w.]+)", text)))
    }
    for element in root.iter():
        identity = names.get(element.attrib.pop("id", ""))
        for key, value in element.attrib.items():
            if key in ("xlink:href", "clip-path"):
                element.set(key, re.sub(r"#([\w.]+)", lambda m: f"#{names[m[1]]}", value))
        if identity:
            element.set("id", identity)
        if link := element.attrib.pop("xlink:href", None):
            element.set("href", link)
    _flatten(root)
    return ET.tostring(root, encoding="unicode")


def _restyle(element: ET.Element) -> None:
    classes = element.get("class", "").split()
    for rule in filter(None, element.attrib.pop("style", "").split(";")):
        name, value = (part.strip() for part in rule.split(":"))
        if name in ("fill", "stroke") and value != "none":
            classes.append(f"{name[0]}-{NAMES[value]}")
        elif name not in DROPPED:
            element.set(name, value.removesuffix("px"))
    if classes:
        element.set("class", " ".join(classes))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]


def _is_stroked(element: ET.Element) -> bool:
    return "s-" in element.get("class", "")


def _flatten(parent: ET.Element) -> None:
    """Put the children of groups without attributes in their places."""
    for child in list(parent):
        _flatten(child)
        if child.tag == "g" and not child.attrib:
            place = list(parent).index(child)
            parent.remove(child)
            for number, inner in enumerate(child):
                parent.insert(place + number, inner)
