"""The page of ``dwsep demo``: what it shows, its server, and the page in a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import threading
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from dwsep_zoo import UserError, create_model, open_artefact
from dwsep_zoo.artefacts import export
from dwsep_zoo.artefacts.demo import cost, from_drawing, see
from dwsep_zoo.artefacts.overlay import heat
from dwsep_zoo.artefacts.sources import MOST_BYTES
from dwsep_zoo.cli import main
from dwsep_zoo.commands.demo import Server
from tests.artefacts.conftest import COLOURS, SIDE, picture

PEN = {
    "0": [(3, 0), (1, 2), (1, 8), (3, 10), (6, 10), (8, 8), (8, 2), (6, 0), (3, 0)],
    "1": [(3, 2), (5, 0), (5, 10)],
    "2": [(1, 2), (3, 0), (6, 0), (8, 2), (8, 4), (1, 10), (8, 10)],
    "3": [(1, 1), (4, 0), (7, 1), (7, 4), (4, 5), (7, 6), (7, 9), (4, 10), (1, 9)],
    "4": [(6, 10), (6, 0), (1, 7), (9, 7)],
    "5": [(8, 0), (2, 0), (2, 4), (6, 4), (8, 6), (8, 8), (6, 10), (2, 10)],
    "6": [(6, 0), (3, 2), (1, 6), (2, 9), (5, 10), (8, 8), (6, 5), (2, 7)],
    "7": [(1, 0), (8, 0), (4, 10)],
    "8": [(5, 5), (2, 3), (3, 0), (7, 0), (8, 3), (5, 5), (2, 7), (3, 10), (7, 10), (8, 7), (5, 5)],
    "9": [(8, 3), (5, 5), (2, 3), (3, 0), (7, 0), (8, 3), (8, 7), (6, 10), (2, 10)],
}


def drawing(digit, corner=(70, 40), height=200, pen=28):
    """A digit as the page gets it: a dark pen on white."""
    image = Image.new("RGB", (320, 320), "white")
    left, top = corner
    points = [(left + height / 10 * x, top + height / 10 * y) for x, y in PEN[digit]]
    ImageDraw.Draw(image).line(points, "black", pen, joint="curve")
    return image


@pytest.fixture(scope="module")
def artefact(saved):
    return open_artefact(saved)


@pytest.fixture(scope="module")
def exported(artefact, pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "model.pt2"
    export(artefact, "torch_export", path, pictures=sorted(pictures.rglob("*.png")))
    return open_artefact(path)


def test_what_is_shown_is_what_predict_says(artefact, exported):
    image = picture(COLOURS["pink"], 3, (50, 40))
    (want,) = artefact.predict([image])
    for one in (artefact, exported):
        found = see(one, image)
        assert tuple(found.probabilities) == want.classes
        assert [*found.probabilities.values()] == pytest.approx(want.probabilities, rel=1e-4)
        assert found.milliseconds > 0
    assert see(exported, image).overlay is None
    assert np.array_equal(see(artefact, image).overlay, heat(artefact, image))


def test_a_file_costs_what_its_network_does(artefact, exported):
    for one in (artefact, exported):
        found = cost(one)
        assert found.params == sum(p.numel() for p in artefact.model.parameters())
        assert found.input_size == (3, SIDE, SIDE)
    model = create_model("mobilenet_v1_shallow", width_mult=0.25, output_stride=16, num_classes=6)
    assert cost(exported).macs == sum(one.macs for one in cost(artefact).layers)
    assert cost(exported).params == sum(p.numel() for p in model.parameters())


def grey(artefact, **changes):
    return artefact.about.replace(in_chans=1, std=(0.3,), **changes)


@pytest.mark.parametrize(("corner", "height", "pen"), [((70, 40), 200, 28), ((10, 180), 110, 20)])
def test_a_drawn_digit_is_like_those_of_its_training(artefact, corner, height, pen):
    """The nearest of scikit-learn's images, in its own 8 x 8 pixels, is of the same digit."""
    about = grey(artefact, mean=(0.3,), record={"data": {"name": "digits"}}, image_size=32)
    digits = load_digits()
    known = digits.images / 16
    right = 0
    for digit in PEN:
        made = from_drawing(drawing(digit, corner, height, pen), about)
        assert (made.mode, made.size) == ("L", (32, 32))
        own = np.array(made.resize((8, 8), Image.Resampling.BOX)) / 255
        nearest = np.square(known - own).sum((1, 2)).argmin()
        right += str(digits.target[nearest]) == digit
    assert right >= 9


@pytest.mark.parametrize("mean", [0.2, 0.8])
def test_a_drawing_is_light_on_dark_where_the_training_pictures_are(artefact, mean):
    image = np.array(from_drawing(drawing("1"), grey(artefact, mean=(mean,))))
    inside = image if mean < 0.5 else 255 - image
    rows, columns = (np.flatnonzero(inside.max(axis) > 100) for axis in (1, 0))
    assert image.shape[0] == image.shape[1]
    for found in (rows, columns):  # in the middle
        assert found[0] == pytest.approx(image.shape[0] - 1 - found[-1], abs=1)
    assert rows[0] == pytest.approx(image.shape[0] / 7, abs=2)  # a border of 0.2 on each side


def test_a_network_for_colours_gets_the_drawing_itself(artefact):
    assert from_drawing(drawing("2"), artefact.about) == drawing("2")


def test_an_empty_drawing(artefact):
    with pytest.raises(UserError, match="nothing is drawn"):
        from_drawing(Image.new("RGB", (320, 320), "white"), artefact.about)


def refusal(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *map(str, words)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_bad_input_ends_in_one_line(saved, capsys):
    assert "for example: dwsep demo" in refusal([], capsys)
    assert "one to 4 networks" in refusal([saved] * 5, capsys)
    assert "port must be at most" in refusal([saved, "port=70000"], capsys)
    assert "host=nowhere.invalid" in refusal([saved, "host=nowhere.invalid"], capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port={port}: Address already in use" in refusal([saved, f"port={port}"], capsys)
    assert "nowhere.onnx" in refusal([saved, "nowhere.onnx", f"port={port}"], capsys)


@pytest.fixture(scope="module")
def page(artefact, exported):
    """The address of a server with a network and its exported file."""
    with Server("127.0.0.1", 0) as server:
        server.show([artefact, exported])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


def ask(address, content=None):
    """Status, headers and body of an answer."""
    try:
        with urlopen(address, content, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_server_answers(page, artefact, pictures):
    path = next(pictures.rglob("*.png"))
    (want,) = artefact.predict([path])
    status, _, body = ask(f"{page}/picture", path.read_bytes())
    assert status == 200
    ours, theirs = json.loads(body)["networks"]
    for found in (ours, theirs):
        assert tuple(name for name, _ in found["classes"]) == want.classes
        assert found["milliseconds"] > 0
    assert ours["overlay"].startswith("data:image/png;base64,")
    assert theirs["overlay"] is None


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("picture", b"no picture", 400, "this picture: not a picture"),
        ("picture", b"", 400, "not a picture"),
        ("drawing", None, 404, ""),
        ("../etc/passwd", None, 404, ""),
        ("else", b"", 404, ""),
    ],
)
def test_what_is_no_picture_has_a_message(page, path, content, status, words, capfd):
    got, _, body = ask(f"{page}/{path}", content)
    assert got == status
    if words:
        assert words in json.loads(body)["error"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("length", [str(MOST_BYTES + 1), "-1", "many"])
def test_a_picture_of_any_size_is_not_waited_for(page, length):
    connection = HTTPConnection(page.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/picture")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 400
    assert f"at most {MOST_BYTES:,} bytes" in json.loads(answer.read())["error"]
    connection.close()


def test_an_empty_drawing_has_a_message(page):
    file = io.BytesIO()
    Image.new("RGB", (320, 320), "white").save(file, "png")
    assert json.loads(ask(f"{page}/drawing", file.getvalue())[2])["error"] == "nothing is drawn yet"


def test_the_page_names_nothing_of_other_servers(page):
    _, headers, body = ask(page)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.findall(rb"https?://", body)
    assert body.count(b"<h2>mobilenet_v1_shallow</h2>") == 2


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where there is one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        yield found
        found.close()


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_in_a_browser(page, browser, artefact, pictures, tmp_path, width):
    view = browser.new_page(viewport={"width": width, "height": 900})
    asked, errors = [], []
    view.on("request", lambda request: asked.append(request.url))
    view.on("console", lambda message: errors.append(message.text))
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.goto(page)
    path = next(pictures.rglob("*.png"))
    view.set_input_files("input[type=file]", str(path))
    view.wait_for_selector("text=median of five calls")
    (want,) = artefact.predict([path])
    first = view.locator("ol").evaluate_all(
        "lists => lists.map(e => e.querySelector('span').innerText)"
    )
    assert first == [want.classes[0]] * 2
    assert view.locator("figure:visible").count() == 1
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    view.click("text=Drawing")
    box = view.locator("canvas").bounding_box()
    view.mouse.move(box["x"] + 100, box["y"] + 60)
    view.mouse.down()
    view.mouse.move(box["x"] + 100, box["y"] + 240, steps=5)
    view.mouse.up()
    view.wait_for_selector("text=median of five calls")
    assert view.locator("li").count() == 10
    assert all(url.startswith((page, "data:", "blob:")) for url in asked)
    assert not errors
    view.click("text=Clear")
    assert view.locator("li").count() == 0
    broken = tmp_path / "broken.png"
    broken.write_bytes(path.read_bytes()[:60])
    view.set_input_files("input[type=file]", str(broken))
    view.wait_for_selector("#message.bad >> text=not a picture")
    view.close()
