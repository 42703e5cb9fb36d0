"""What is written is what was measured, once."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from dydiff_jax.training import logging
from dydiff_jax.training.phases import Phases


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir):
    """{(tag, step): value} of all event files, from their length-delimited records."""
    values = {}
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return values


def test_lines_hold_means_and_tensorboard_agrees(tmp_path):
    with logging.MetricsLog(tmp_path, 0, {}, Phases()) as log:
        for value in (1.0, 2.0, 6.0):
            log.add({"loss": value})
        log.write(3, {"learning_rate": 0.5})
        log.add({"loss": 7.0})
        log.write(4, {"learning_rate": float("inf")})
    first, second = read_lines(tmp_path)
    assert (first["step"], first["loss"], first["learning_rate"]) == (3, 3.0, 0.5)
    assert (second["step"], second["loss"], second["learning_rate"]) == (4, 7.0, None)
    events = read_events(tmp_path)
    assert events["loss", 3] == 3.0
    assert events["loss", 4] == 7.0


def test_a_window_survives_a_restart(tmp_path):
    with logging.MetricsLog(tmp_path, 0, {}, Phases()) as log:
        log.add({"loss": 1.0})
        notes = json.loads(json.dumps(log.notes))
    with logging.MetricsLog(tmp_path, 1, notes, Phases()) as log:
        log.add({"loss": 2.0})
        log.write(2, {})
    assert [line["loss"] for line in read_lines(tmp_path)] == [1.5]


def test_the_account_of_time_goes_on_after_a_restart(tmp_path):
    """Seconds of the checkpoint are kept, those logged after it are lost, and the restart is counted."""
    first = Phases()
    first.move("start", "step", 50.0)
    with logging.MetricsLog(tmp_path, 0, {}, first) as log:
        log.write(1, {})
        notes = json.loads(json.dumps(log.notes))
        first.move("start", "step", 30.0)
        log.write(2, {})
    second = Phases()
    with logging.MetricsLog(tmp_path, 1, notes, second) as log:
        log.write(2, {})
    lines = read_lines(tmp_path)
    assert [line["starts"] for line in lines] == [1, 2]
    assert lines[1]["seconds"]["step"] == pytest.approx(50.0, abs=1e-3)
    assert lines[1]["seconds"]["lost"] == pytest.approx(30.0, abs=0.1)


def test_later_and_unfinished_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 0.1}\n{"step": 4, "loss": 0.2}\n{"step": 6, "loss": 0.3}\n{"st')
    logging.drop_later_lines(path, 4)
    assert path.read_text() == '{"step": 2, "loss": 0.1}\n{"step": 4, "loss": 0.2}\n'


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\nloss is low\n{"step": 4}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*loss is low"):
        logging.drop_later_lines(path, 4)


def test_the_bar_shows_rate_time_left_and_loss(capfd):
    with logging.progress_bar(5, 10) as bar:
        bar.set_postfix_str("loss 0.25", refresh=False)
        bar.update(1)
        bar.refresh()
    shown = capfd.readouterr().err
    assert "6/10" in shown and "step/s" in shown and "<" in shown and "loss 0.25" in shown
