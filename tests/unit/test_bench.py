"""The benchmarks' program: what can't be measured is told, with the reason, and is no failure."""

import json

import pytest

from vortex_worker.bench import __main__ as bench
from vortex_worker.bench import scale
from vortex_worker.bench.measure import Result, Target


def test_what_there_is_no_memory_for_is_skipped_and_told(monkeypatch, capsys):
    monkeypatch.setattr(scale, "_available_mib", lambda: 100)
    assert bench.main(["--only", "scale.workers256", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["results"] == {}
    assert "and 100 are available" in data["skipped"]["scale.workers256"]
    assert bench.main(["--only", "scale.workers256"]) == 0
    assert "scale.workers256 was not measured" in capsys.readouterr().out


def test_what_takes_gigabytes_is_left_out_unless_asked_for(monkeypatch, capsys):
    ran = []
    result = Result("what", "µs", 2.0, 3.0, "reference", 1.0, Target("ratio", 3.0, 2.0))
    monkeypatch.setattr(bench, "KEYS", {key: lambda quick, key=key: ran.append(key) or result for key in bench.KEYS})
    bench.main(["--json", "-"])
    assert set(ran) == bench.KEYS.keys() - bench.LONG
    ran.clear()
    bench.main(["--long", "--json", "-"])
    assert set(ran) == bench.KEYS.keys()


def test_a_key_that_is_not_there_is_refused_with_those_that_are(capsys):
    assert bench.main(["--only", "scale.nonsense"]) == 2
    assert "no benchmark scale.nonsense; there are map.tensor" in capsys.readouterr().err.replace("\n", " ")


def test_one_benchmark_s_failure_is_told_and_is_the_program_s(monkeypatch, capsys):
    def fails(quick):
        raise AssertionError("a wrong result")

    result = Result("what", "µs", 2.0, 3.0, "reference", 1.0, Target("ratio", 3.0, 2.0))
    monkeypatch.setattr(bench, "KEYS", {"map.tensor": fails, "map.arrow": lambda quick: result})
    assert bench.main(["--json", "-"]) == 1
    told = capsys.readouterr()
    data = json.loads(told.out)
    assert data["results"].keys() == {"map.arrow"}
    assert "a wrong result" in data["failed"]["map.tensor"]
    assert "map.tensor failed: Traceback" in told.err


def test_earlier_figures_stay_until_there_are_new_ones(monkeypatch, tmp_path):
    def interrupted(quick):
        raise KeyboardInterrupt

    result = Result("what", "µs", 2.0, 3.0, "reference", 1.0, Target("ratio", 3.0, 2.0))
    file = tmp_path / "figures.json"
    monkeypatch.setattr(bench, "KEYS", {"map.tensor": lambda quick: result})
    assert bench.main(["--json", str(file)]) == 0
    before = file.read_text()
    monkeypatch.setattr(bench, "KEYS", {"map.arrow": interrupted})
    assert bench.main(["--json", str(file)]) == 130
    assert file.read_text() == before
    monkeypatch.setattr(bench, "KEYS", {"map.arrow": lambda quick: result})
    assert bench.main(["--json", str(file)]) == 0
    assert json.loads(file.read_text())["results"].keys() == {"map.arrow"}


@pytest.mark.parametrize(("samples", "worst"), [({1: [1.0], 2: [3.0], 4: [2.0]}, 3.0), ({1: [5.0], 2: [3.0]}, 3.0)])
def test_the_worst_size_is_compared_with_the_first(samples, worst):
    result = scale._worst("what", samples, "the first", Target("ratio", 1.5, 1.1), {})
    assert result.median == worst * 1e6
    assert result.ratio == worst / samples[1][0]
