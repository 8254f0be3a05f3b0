"""Frames hold what was put into them, and a damaged one is never taken for a sound one."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from production_ml.monitoring.run_log.format import (
    FRAME,
    LARGEST_PAYLOAD_BYTES,
    Decoder,
    EventRecord,
    NamesLayout,
    encode_event,
    encode_source,
    find_frame,
    frame,
)


def payload_of(framed: bytes) -> bytes:
    return framed[FRAME.size :]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def decode_metrics(names, values):
    layout, decoder = NamesLayout.of(names), Decoder()
    decoder.decode(payload_of(layout.definition))
    return decoder.decode(layout.values.pack(b"M", layout.names_id, 7, 1.5, *values))


def test_metrics_come_back_bit_for_bit_whatever_they_are(rng):
    odd = [
        math.nan,
        struct.unpack("<d", bytes.fromhex("230100000000f8ff"))[0],
        math.inf,
        -math.inf,
        -0.0,
        5e-324,
        1e308,
    ]
    values = odd + [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(100)]
    names = tuple(f"m/{number}" for number in range(len(values)))

    record = decode_metrics(names, values)

    assert (record.step, record.wall_seconds, tuple(record.values)) == (7, 1.5, names)
    assert [bits(value) for value in record.values.values()] == [bits(value) for value in values]


def test_names_may_be_any_text_and_what_is_none_becomes_it():
    assert decode_metrics(("train/損失", "", 'quo"te', 3), (1.0, 2.0, 3.0, 4.0)).values == {
        "train/損失": 1.0,
        "": 2.0,
        'quo"te': 3.0,
        "3": 4.0,
    }


def test_other_names_or_another_order_have_another_id():
    ids = {NamesLayout.of(names).names_id for names in [("a", "b"), ("b", "a"), ("a",), ("ab",), ()]}

    assert len(ids) == 5


def test_an_event_comes_back_with_its_facts_and_odd_ones_become_text(source):
    event = EventRecord("alert", 3.5, 12, "warning", "look", {"path": Path("a/b"), "loss": math.nan, "lock": object})

    back = Decoder().decode(payload_of(encode_event(event)))

    assert back == EventRecord(
        "alert", 3.5, 12, "warning", "look", {"path": "a/b", "loss": "NaN", "lock": "<class 'object'>"}
    )


def test_the_source_comes_back(source):
    decoder = Decoder()

    assert decoder.decode(payload_of(encode_source(source))) is None
    assert decoder.source == source


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"X",
        b"M",
        b"N\x00",
        b"S[]",
        b"S{}",
        b"E{",
        b"E[1, 2]",
        b"E\xff",
        b'E{"name": "a", "wall_seconds": 1, "of a later version": 2}',
        struct.pack("<cIqd", b"M", 12345, 0, 0.0),
    ],
)
def test_a_payload_that_is_none_of_ours_is_a_value_error_and_nothing_else(payload):
    with pytest.raises(ValueError, match=r".+"):
        Decoder().decode(payload)


def test_metrics_of_other_length_than_their_names_are_not_guessed():
    layout, decoder = NamesLayout.of(("a", "b")), Decoder()
    decoder.decode(payload_of(layout.definition))

    for values in (struct.pack("<d", 1.0), struct.pack("<3d", 1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="bytes"):
            decoder.decode(struct.pack("<cIqd", b"M", layout.names_id, 0, 0.0) + values)


def test_the_next_sound_frame_is_found_behind_any_damage(rng):
    for _ in range(200):
        first, second = frame(b"E" + rng.randbytes(rng.randrange(60))), frame(b"E" + json.dumps({"n": 1}).encode())
        damaged = bytearray(first)
        damaged[rng.randrange(len(first))] ^= 1 << rng.randrange(8)

        assert find_frame(bytes(damaged) + second, 0) == (len(first), len(first) + len(second))


def test_a_frame_that_is_not_whole_is_not_found():
    whole = frame(b"E{}")

    assert find_frame(whole, 0) == (0, len(whole))
    assert all(find_frame(whole[:length], 0) is None for length in range(len(whole)))


@pytest.mark.parametrize("data", [b"", b"\x00" * 10_000, b"\xff" * 10_000, b"SNME" * 1000])
def test_noise_holds_no_frame(data):
    assert find_frame(data, 0) is None


def test_an_impossible_length_is_not_believed():
    assert find_frame(FRAME.pack(LARGEST_PAYLOAD_BYTES + 1, 0) + b"E" * 100, 0) is None
