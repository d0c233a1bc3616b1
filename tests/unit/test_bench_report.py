"""What the benchmarks say of their figures: verdicts in words, a confession, a picture."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from vortex_worker.bench import machine
from vortex_worker.bench.measure import Result, Target, number
from vortex_worker.bench.plot import draw


def result(median, reference=10.0, target=None):
    return Result(
        "what it is", "µs", median, median * 2, "the reference", reference, target or Target("ratio", 3.0, 1.4)
    )


RATE = Target("ratio", 0.98, 0.995, higher_is_better=True)
TIME = Target("median", 100.0, 60.0)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (result(13.0), "1.3 × the reference: reaches the aim of 1.4"),
        (result(20.0), "2 × the reference, and at most 3 is asked for: meets the target, not yet the aim of 1.4"),
        (result(60.0), "6 × the reference, and at most 3 is asked for: misses the target by a factor of 2"),
        (result(30.06), "3.01 × the reference, and at most 3 is asked for: misses the target by 0.2 %"),
        (result(60.0, target=TIME), "60 µs: reaches the aim of 60"),
        (result(1500.0, target=TIME), "1,500 µs, and at most 100 is asked for: misses the target by a factor of 15"),
        (result(10.0, target=RATE), "1 × the reference: reaches the aim of 0.995"),
        (result(9.85, target=RATE), "0.985 × the reference, and at least 0.98 is asked for: meets the target, not yet the aim of 0.995"),  # noqa: E501
        (result(4.9, target=RATE), "0.49 × the reference, and at least 0.98 is asked for: misses the target by a factor of 2"),  # noqa: E501
    ],
)  # fmt: skip
def test_the_verdict_in_words(figure, words):
    assert figure.words == words
    assert figure.as_dict()["words"] == words


@pytest.mark.parametrize(
    ("value", "text"), [(0.4234, "0.423"), (999.4, "999"), (1.0062, "1.006"), (4003.0, "4,003"), (12.0, "12")]
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_the_confession_names_what_this_machine_does_to_figures():
    about = machine.describe()
    for quick in (False, True):
        told = " ".join(machine.confession(about | {"virtual": True, "governor": "powersave"}, quick))
        assert "GPU" in told
        assert "virtual machine" in told
        assert "powersave" in told
        assert ("--quick" in told) is quick
    assert "virtual" not in " ".join(machine.confession(about | {"virtual": False, "governor": "performance"}, False))


def test_the_picture_shows_every_figure_and_the_same_bytes_each_time(tmp_path):
    results = {"job.roundtrip": result(60.0), "start.cold": result(61.0, target=TIME), "rate": result(9.9, target=RATE)}
    about = machine.describe()
    svg, png = draw(results, about, tmp_path / "new" / "folder")
    assert (svg.name, png.name) == ("bench.svg", "bench.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"</svg>" in svg.read_bytes()
    again, _ = draw(results, about, tmp_path / "again")
    assert again.read_bytes() == svg.read_bytes()
    from PIL import Image

    with Image.open(png) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0xC0, 0x39, 0x2B), (0x2F, 0x6F, 0xB0)} <= colours  # a miss in red, a meeting in blue


def bench(*arguments):
    command = [sys.executable, "-P", "-m", "vortex_worker.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_one_benchmark_from_the_command_line(tmp_path):
    done = bench("--quick", "--only", "sandbox.install,job.roundtrip", "--json", "-", "--plot", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["results"]["sandbox.install"]["median"] > 0
    assert report["results"]["sandbox.install"]["words"]
    assert report["confession"]
    assert {"cpu", "kernel", "governor", "torch"} <= report["machine"].keys()
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"bench.svg", "bench.png"}


@pytest.mark.parametrize("columns", [80, 130])
def test_the_table_fits_the_terminal(columns):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-P", "-m", "vortex_worker.bench", "--quick", "--only", "codec.encode,sandbox.install"]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(master, 1 << 16):
                written += chunk
    os.close(master)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", written.decode()).splitlines()
    rows = [line for line in lines if line[:1] in "┃│┏┡├└" and line]
    assert len(rows) > 8
    assert {len(row) for row in rows} <= set(range(60, columns + 1))
    assert ("p99" in "".join(rows)) == (columns > 80)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "no.such"], "no benchmark no.such; there are map.tensor"),
        (["--only", ""], "it names no benchmark; there are map.tensor"),
        (["--json", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--plot", __file__], __file__),
        (["--plot", "/proc/no/such"], "No such file or directory: /proc/no/such"),
    ],
)
def test_what_can_not_work_is_told_before_anything_is_measured(arguments, told):
    done = bench(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
