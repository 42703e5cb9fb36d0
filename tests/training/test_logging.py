"""What is written is what was measured, once."""

import json
import re
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from dydiff_jax.training import logging
from dydiff_jax.training.phases import Phases


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir):
    """{(tag, step): value} of all event files, from their length-delimited records."""
    values = {}
    for path in sorted((workdir / "tensorboard/toy").glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return values


def test_lines_hold_means_and_tensorboard_agrees(tmp_path):
    with logging.MetricsLog(tmp_path, "toy", 0, {}, Phases()) as log:
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
    with logging.MetricsLog(tmp_path, "toy", 0, {}, Phases()) as log:
        log.add({"loss": 1.0})
        notes = json.loads(json.dumps(log.notes))
    with logging.MetricsLog(tmp_path, "toy", 1, notes, Phases()) as log:
        log.add({"loss": 2.0})
        log.write(2, {})
    assert [line["loss"] for line in read_lines(tmp_path)] == [1.5]


def test_the_time_breakdown_goes_on_after_a_restart(tmp_path):
    """Seconds of the checkpoint are kept, those logged after it are lost, and the restart is counted."""
    first = Phases()
    first.move("start", "step", 50.0)
    with logging.MetricsLog(tmp_path, "toy", 0, {}, first) as log:
        log.write(1, {})
        notes = json.loads(json.dumps(log.notes))
        first.move("start", "step", 30.0)
        log.write(2, {})
    second = Phases()
    with logging.MetricsLog(tmp_path, "toy", 1, notes, second) as log:
        log.write(2, {})
    lines = read_lines(tmp_path)
    assert [line["starts"] for line in lines] == [1, 2]
    assert lines[1]["seconds"]["step"] == pytest.approx(50.0, abs=1e-3)
    assert lines[1]["seconds"]["lost"] == pytest.approx(30.0, abs=0.1)


def test_validation_has_lines_and_the_lowest_score_is_the_best(tmp_path):
    """By the first value: the earlier of two equal ones, never one that is not finite. A restart keeps it."""
    with logging.MetricsLog(tmp_path, "toy", 0, {}, Phases()) as log:
        log.add({"loss": 1.0})
        for step, score in ((2, float("nan")), (4, 0.5), (6, 0.25), (8, 0.25)):
            log.write_validation(step, {"valid_crps": score, "valid_bias": -step}, seconds=0.0)
        assert log.notes["best"] == {"step": 6, "score": 0.25} and log.validated == 8
        log.write(9, {})
        notes = json.loads(json.dumps(log.notes))
    assert read_events(tmp_path)["valid_crps", 6] == 0.25
    with logging.MetricsLog(tmp_path, "toy", 9, notes, Phases()) as log:
        log.write_validation(10, {"valid_crps": 0.3}, seconds=0.0)
        assert log.notes["best"] == {"step": 6, "score": 0.25}
    lines = read_lines(tmp_path)
    assert [line.get("valid_crps") for line in lines] == [None, 0.5, 0.25, 0.25, None, 0.3]
    assert "valid_crps" in lines[0] and "steps_per_second" not in lines[0] and lines[4]["loss"] == 1.0


def test_the_time_of_validation_is_no_part_of_the_rate(tmp_path):
    with logging.MetricsLog(tmp_path, "toy", 0, {}, Phases()) as log:
        time.sleep(0.1)
        log.write_validation(5, {"valid_crps": 0.5}, seconds=0.09)
        log.write(10, {})
    assert read_lines(tmp_path)[-1]["steps_per_second"] > 10 / 0.08


def line(stage, step):
    return f'{{"stage": "{stage}", "step": {step}}}\n'


@pytest.mark.parametrize(
    "stage, step, kept",
    [
        ("a", 4, [("a", 2), ("a", 4)]),
        ("b", 2, [("a", 2), ("a", 4), ("a", 9), ("b", 1)]),
        ("b", 0, [("a", 2), ("a", 4), ("a", 9)]),
        ("c", 4, [("a", 2), ("a", 4), ("a", 9), ("b", 1), ("b", 5), ("c", 1)]),
        ("d", 0, [("a", 2), ("a", 4), ("a", 9), ("b", 1), ("b", 5), ("c", 1)]),
    ],
)
def test_later_and_unfinished_lines_are_dropped(tmp_path, stage, step, kept):
    """Those of this stage after the step, and of all later stages; those of earlier stages stay."""
    path = tmp_path / "metrics.jsonl"
    lines = [("a", 2), ("a", 4), ("a", 9), ("b", 1), ("b", 5), ("c", 1)]
    path.write_text("".join(line(*found) for found in lines) + '{"st')
    last = logging.drop_later_lines(path, stage, step)
    assert path.read_text() == "".join(line(*found) for found in kept)
    own = [found for found in lines if found[0] == stage]
    assert last == ({"stage": stage, "step": own[-1][1]} if own else {})


@pytest.mark.parametrize("broken", ["loss is low", '{"step": 3}', '{"stage": "a"}', "[]"])
def test_a_broken_line_is_named(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line('a', 2)}{broken}\n{line('a', 4)}")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2: .*{re.escape(broken)}"):
        logging.drop_later_lines(path, "a", 4)


def test_the_bar_shows_rate_time_left_and_loss(capfd):
    with logging.progress_bar("toy", 5, 10) as bar:
        bar.set_postfix_str("loss 0.25", refresh=False)
        bar.update(1)
        bar.refresh()
    shown = capfd.readouterr().err
    assert (
        "train toy" in shown
        and "6/10" in shown
        and "step/s" in shown
        and "<" in shown
        and "loss 0.25" in shown
    )
