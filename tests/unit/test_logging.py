"""Logs: one JSON object a line, whatever is put in and whoever writes."""

import json
import os

from vortex_worker.logging import LineReader, Logger


def lines_of(write):
    read_fd, write_fd = os.pipe()
    try:
        write(write_fd)
        os.close(write_fd)
        return os.read(read_fd, 1 << 20).splitlines()
    finally:
        os.close(read_fd)


def test_a_line_is_one_json_object_with_every_field():
    def write(fd):
        log = Logger("w1", "info", fd)
        log.job_id = 9
        log.info("job.done", ms=1.5, text='quote " and\nnewline', other=object)

    (line,) = lines_of(write)
    entry = json.loads(line)
    assert (entry["level"], entry["worker_id"], entry["job_id"], entry["event"]) == ("info", "w1", 9, "job.done")
    assert entry["fields"]["text"] == 'quote " and\nnewline'
    assert entry["time"].endswith("Z")


def test_levels_below_the_threshold_are_not_written():
    assert lines_of(lambda fd: Logger("w", "warning", fd).info("quiet")) == []


def test_a_long_field_is_cut_and_the_line_stays_json():
    (line,) = lines_of(lambda fd: Logger("w", "info", fd).error("big", traceback="x" * 100_000))
    assert len(line) < 20_000
    assert json.loads(line)["fields"]["traceback"].endswith("…")


def test_a_log_that_nobody_reads_does_no_harm():
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    Logger("w", "info", write_fd).info("lost")
    os.close(write_fd)


def test_hostile_bytes_become_printable_lines():
    seen = []
    reader = LineReader(seen.append)
    reader.feed(b"one\ntw")
    reader.feed(b"o\n\x1b[2J\x07\xff\xfe\nrest")
    reader.close()
    assert seen == ["one", "two", "\\x1b[2J\\x07\\xff\\xfe", "rest"]
    assert all(line.isprintable() for line in seen)


def test_a_flood_is_dropped_and_a_line_without_end_is_cut():
    seen = []
    reader = LineReader(seen.append, burst=10)
    reader.feed(b"x\n" * 100)
    assert len(seen) <= 20
    assert reader.dropped >= 80
    endless = LineReader(seen.append)
    for _ in range(64):
        endless.feed(b"y" * (1 << 16))
    assert len(endless._pending) <= 1 << 17
