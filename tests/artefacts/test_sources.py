"""Pictures on the command line: files, folders, patterns, addresses."""

import csv
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dwsep_zoo import UserError
from dwsep_zoo.artefacts import sources
from dwsep_zoo.cli import main
from tests.artefacts.conftest import COLOURS, picture


@pytest.fixture(scope="module")
def server():
    """Serves a picture, a text, a redirection to a file, a large body, an error."""
    file = io.BytesIO()
    picture(COLOURS["red"], 1).save(file, "png")
    bodies = {"/red.png": file.getvalue(), "/text": b"no picture", "/large": bytes(200_000)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/to="):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to="))
                self.end_headers()
            elif self.path in bodies:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(bodies[self.path])
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_picture_of_a_server_that_may_be_asked(server):
    assert sources.download(f"{server}/red.png", private=True).size == (32, 32)
    assert sources.download(f"{server}/to=/red.png", private=True).size == (32, 32)


@pytest.mark.parametrize(
    ("path", "private", "words"),
    [
        ("/red.png", False, "private=true"),
        ("/text", True, "not a picture"),
        ("/none", True, "404"),
        ("/large", True, "more than"),
        ("/to=file:///etc/hostname", True, "not an address|not allowed"),
        ("/to=ftp://127.0.0.1/x", True, "not an address"),
        ("/to=http://nowhere.invalid/x", True, "not known"),
    ],
)
def test_answers_that_are_refused(path, private, words, server, monkeypatch):
    monkeypatch.setattr(sources, "MOST_BYTES", 100_000)
    with pytest.raises(UserError, match=words):
        sources.download(server + path, private=private)


@pytest.mark.parametrize(
    "address",
    ["http://localhost/", "http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/x",
     "http://nowhere.invalid/", "http://[", "http://a:99999/", "http://"],
)  # fmt: skip
def test_addresses_that_are_refused(address):
    with pytest.raises(UserError):
        sources.download(address)


def test_files_folders_and_patterns(pictures, tmp_path):
    one = pictures / "Red" / "0.png"
    found = sources.pictures_in([str(one), str(pictures / "Blue"), str(pictures / "*/1.png")])
    assert found[0] == str(one)
    assert found[1:6] == [str(pictures / "Blue" / f"{i}.png") for i in range(5)]
    assert len(found) == 1 + 5 + len(COLOURS)
    for word in (str(tmp_path), str(tmp_path / "none.png"), str(tmp_path / "*.png")):
        with pytest.raises(UserError, match=str(tmp_path)):
            sources.pictures_in([word])


def test_predictions_as_text_csv_and_json(saved, pictures, tmp_path, capsys):
    (tmp_path / "empty.png").write_bytes(b"")
    names = [str(pictures / "Red" / "0.png"), str(tmp_path / "empty.png")]
    found = {}
    for form in ("text", "json", "csv"):
        with pytest.raises(SystemExit, match="2"):  # for the empty file
            main(["predict", str(saved), *names, f"format={form}", "top_k=2"])
        out, err = capsys.readouterr()
        assert "empty.png" in err
        found[form] = out
    ((one,)) = json.loads(found["json"])
    header, row = csv.reader(io.StringIO(found["csv"]))
    assert header == ["picture", "class1", "p1", "class2", "p2"]
    assert row[0] == one["picture"] == names[0]
    assert [row[1], row[3]] == [entry["class"] for entry in one["classes"]]
    assert float(row[2]) == pytest.approx(one["classes"][0]["p"])
    assert found["text"].startswith(f"{names[0]}: {row[1]} ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "for example"),
        (["{saved}"], "for example"),
        (["nowhere", "{picture}"], "nowhere"),
        (["{saved}", "{picture}", "cam=true"], "save="),
        (["{saved}", "{picture}", "top_k=0"], "top_k"),
        (["{saved}", "{picture}", "form=json"], "format"),
        (["{saved}", "{picture}", "save=/proc/x"], "save"),
    ],
)
def test_wrong_lines(arguments, words, saved, pictures, capsys):
    places = {"saved": saved, "picture": pictures / "Red" / "0.png"}
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *(text.format(**places) for text in arguments)])
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
