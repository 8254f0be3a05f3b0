"""What the demo says about served traffic is computed from the answers, and a wrong split fails it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from production_ml.demo.children import StationError
from production_ml.demo.traffic import Answer, check_split, figures, read_test_split, send_requests
from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.open_inference import InferResponse, encode_response, parse_request

INPUTS = [TensorSpec(name="pixels", datatype="FP32", shape=(-1, 64))]
OUTPUTS = [TensorSpec(name="logits", datatype="FP32", shape=(-1, 10))]


def answers(version: str, count: int, correct: int) -> list[Answer]:
    return [Answer(version, index < correct, seconds=(index + 1) / 1000) for index in range(count)]


def test_figures_are_those_of_each_version():
    champion, challenger = figures([*answers("1", 80, 76), *answers("2", 20, 10)])

    assert (champion.requests, champion.share, champion.accuracy) == (80, 0.8, 0.95)
    assert champion.median_ms == pytest.approx(40.5)
    assert champion.p99_ms == pytest.approx(80)
    assert (challenger.requests, challenger.share, challenger.accuracy) == (20, 0.2, 0.5)


def test_a_split_as_wished_passes():
    check_split(figures([*answers("1", 790, 0), *answers("2", 210, 0)]), {"1": 0.8, "2": 0.2})


@pytest.mark.parametrize("challenger", [0, 100, 300])
def test_a_split_that_chance_does_not_explain_fails(challenger):
    found = figures([*answers("1", 1000 - challenger, 0), *answers("2", challenger, 0)])

    with pytest.raises(StationError, match="of the requests"):
        check_split(found, {"1": 0.8, "2": 0.2})


def test_only_the_test_split_is_sent(tmp_path):
    table = tmp_path / "digits.csv"
    table.write_text("split,label,pixel_00\ntrain,1,2\ntest,3,4\n")

    assert read_test_split(table) == [(3, [4])]


class Recognizer(BaseHTTPRequestHandler):
    """Takes the place of the brightest among the first ten pixels for the digit."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = parse_request(body, None, INPUTS, OUTPUTS)
        logits = request.inputs["pixels"][:, :10]
        message = encode_response(InferResponse("digits", "7", {"logits": logits}), request.outputs)
        self.send_response(200)
        self.send_header("Content-Length", str(len(message.body)))
        self.end_headers()
        self.wfile.write(message.body)

    def log_message(self, *_):
        """Nobody reads it."""


@pytest.fixture
def recognizer():
    with ThreadingHTTPServer(("127.0.0.1", 0), Recognizer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_each_scan_is_sent_and_its_answer_is_compared_with_its_label(recognizer, tmp_path):
    bright = [",".join("16" if pixel == place else "0" for pixel in range(64)) for place in (3, 5)]
    table = tmp_path / "digits.csv"
    table.write_text(f"test,3,{bright[0]}\ntest,4,{bright[1]}\n")

    answers = send_requests(recognizer, table)

    assert [(answer.version, answer.correct) for answer in answers] == [("7", True), ("7", False)] * 3
