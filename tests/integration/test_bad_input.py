"""Whatever goes wrong in a job ends in its own error, by code, and the fabric serves on."""

import gc

import pytest
import torch
from conftest import SETTINGS, until

import vortex_worker as vw
from vortex_worker.errors import (
    DeadlineExceeded,
    ExecutionError,
    ExecutorNotFound,
    InvalidHandle,
    OOMSoft,
    OutOfArena,
    ProtocolError,
    ValidationError,
    WorkerLost,
)


def serves(fabric):
    tensor = torch.arange(8.0)
    return torch.equal(fabric.run("Scale", {"tensor": tensor}, {"factor": 2.0})["tensor"], tensor * 2)


# --------------------------------------------------------------- what a caller gets wrong


def test_an_unknown_node_is_told_with_the_nearest_names(single):
    with pytest.raises(ExecutorNotFound, match="did you mean 'Scale'"):
        single.run("Scal")
    assert serves(single)


@pytest.mark.parametrize(
    ("inputs", "params", "said"),
    [
        ({}, {}, ["'tensor' is missing"]),
        ({"tensor": torch.zeros(2), "mask": 1}, {}, ["no input 'mask'"]),
        ({"tensor": 3}, {}, ["'tensor' is 3: it takes a tensor"]),
        ({"tensor": torch.zeros(2)}, {"factor": "big"}, ["'factor' is 'big'"]),
        ({"tensor": torch.zeros(2)}, {"factor": float("nan")}, ["'factor' is nan"]),
        ({"tensor": None}, {"factr": 1, "offset": []}, ["'tensor' is None", "'factr'", "'offset'"]),
    ],
)
def test_bad_ports_and_params_are_all_listed(single, inputs, params, said):
    with pytest.raises(ValidationError) as caught:
        single.run("Scale", inputs, params)
    assert all(text in str(caught.value) for text in said), caught.value
    assert serves(single)


@pytest.mark.parametrize("value", [object(), {1: 2}, 1 << 70, torch.zeros(2, 2).to_sparse(), "\udc80"])
def test_what_cannot_be_sent_is_refused_at_once(single, value):
    with pytest.raises((TypeError, ValueError, ValidationError)):
        single.run("Identity", {"tensor": value})
    assert serves(single)


def test_more_than_a_frame_holds_is_refused_with_advice(single):
    with pytest.raises(ValidationError, match="as tensors"):
        single.run("Identity", {"tensor": b"x" * (17 << 20)})
    assert serves(single)


# ------------------------------------------------------------------ what a node gets wrong


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "RuntimeError: the sky is falling"),
        ("raise_unprintable", "Unprintable"),
        ("raise_surrogate", "half a pair"),
        ("raise_huge", "xxx"),
        ("keyboard_interrupt", "KeyboardInterrupt"),
        ("exit", "SystemExit"),
        ("recurse", "RecursionError"),
        ("return_none", "must return a dict"),
        ("return_list", "must return a dict"),
        ("lack_a_port", "count"),
        ("add_a_port", "more"),
        ("mistype_a_port", "'tensor' is 'not a tensor'"),
        ("return_an_int_too_large", "count"),
        ("return_a_sparse_tensor", "sparse"),
        ("return_a_meta_tensor", "meta"),
    ],
)
def test_a_misbehaving_node_fails_its_own_job_only(single, how, said):
    (before,) = (worker["pid"] for worker in single.workers())
    with pytest.raises(ExecutionError, match=said):
        single.run("Misbehave", params={"how": how})
    assert serves(single)
    assert single.workers()[0]["pid"] == before


def test_the_traceback_is_the_nodes_own(single):
    with pytest.raises(ExecutionError) as caught:
        single.run("Misbehave", params={"how": "raise"})
    text = caught.value.details["traceback"]
    assert "do_raise" in text
    assert "runner.py" not in text


@pytest.mark.parametrize("what", ["object", "function", "endless", "deep", "key", "surrogate", "large", "huge int"])
def test_an_output_that_no_wire_carries_fails_its_job(single, what):
    with pytest.raises(ExecutionError):
        single.run("Nonsense", params={"what": what})
    assert serves(single)


@pytest.mark.parametrize(
    ("how", "error"), [("problems", ValidationError), ("nonsense", ExecutionError), ("raise", ExecutionError)]
)
def test_a_nodes_own_validation_may_be_broken(single, how, error):
    with pytest.raises(error):
        single.run("BadValidate", params={"how": how})
    assert serves(single)


def test_a_node_that_cannot_be_made_fails_its_job(single):
    with pytest.raises(ExecutionError, match="no instance for you"):
        single.run("BadInit")
    assert serves(single)


def test_plugins_that_do_not_load_are_told_by_name_and_the_others_serve(single):
    failures = {plugin: (message, trace) for plugin, message, trace in single.plugin_errors()}
    assert {name.split("/")[-1] for name in failures} >= {
        "broken_import",
        "broken_exit",
        "broken_os",
        "broken_duplicate",
    }
    assert all(trace for _, trace in failures.values())
    assert "Beside" in single.nodes()
    assert "builtin" in next(message for name, (message, _) in failures.items() if name.endswith("duplicate"))


def test_a_full_lease_is_told_and_nothing_is_overwritten():
    with vw.Fabric(1, **SETTINGS | {"lease_size": 8 << 20}) as fabric:
        held = []
        with pytest.raises(OutOfArena, match="Fabric's lease_size= or --lease-size gives more"):  # noqa: PT012
            for seed in range(10):
                held.append(fabric.run("RandomTensor", params={"shape": [1 << 18], "seed": seed})["tensor"])
        assert len(held) >= 7
        for seed, tensor in enumerate(held):
            assert torch.equal(tensor, torch.randn(1 << 18, generator=torch.Generator().manual_seed(seed)))
        del held, tensor
        assert serves(fabric)
        assert fabric.run("RandomTensor", params={"shape": [1 << 18], "seed": 1})["tensor"].numel() == 1 << 18


def test_a_full_client_region_is_told():
    with vw.Fabric(1, **SETTINGS | {"client_size": 4 << 20}) as fabric:
        with pytest.raises(OutOfArena, match="Fabric's client_size= gives more"):
            fabric.run("Identity", {"tensor": torch.zeros(2 << 20)})
        assert serves(fabric)


@pytest.mark.parametrize("python", [False, True])
def test_out_of_memory_is_its_own_error_and_the_worker_lives(python):
    with vw.Fabric(1, **SETTINGS | {"memory_limit": 2 << 30}) as fabric:
        fabric.wait_ready(60)
        (before,) = (worker["pid"] for worker in fabric.workers())
        with pytest.raises(OOMSoft, match="twice"):
            fabric.run("Hog", params={"bytes": 8 << 30, "python": python})
        assert serves(fabric)
        assert fabric.workers()[0]["pid"] == before


@pytest.mark.parametrize(("error", "kind"), [("MemoryError", OOMSoft), ("ValueError", ExecutionError)])
def test_what_a_failed_node_held_is_free_for_the_next_job(single, error, kind):
    """Its frames were kept by the error's traceback, until Python happened to look for cycles."""
    with pytest.raises(kind):
        single.run("Left", params={"error": error})
    assert single.run("Left") == {"count": 0}


def test_what_onednn_says_for_want_of_memory_is_out_of_memory_where_there_is_a_limit():
    """Found by a first user, as WK-006: "could not create a primitive" is all that it says."""
    with vw.Fabric(1, **SETTINGS | {"memory_limit": 2 << 30}) as fabric:
        fabric.wait_ready(60)
        (before,) = (worker["pid"] for worker in fabric.workers())
        with pytest.raises(OOMSoft, match="Crowded: out of memory, twice: could not create a primitive"):
            fabric.run("Crowded")
        assert serves(fabric)
        assert fabric.workers()[0]["pid"] == before


# ------------------------------------------------------- what a hostile worker tells the supervisor

BROKEN_TRAFFIC = (
    "garbage", "bad protobuf", "empty frame", "oversized frame", "half a frame", "no body", "another job's result",
    "another job's progress", "a handshake", "a submit", "a shutdown", "a fault",
)  # fmt: skip
LYING_HANDLES = (
    "offset before the lease", "offset past the lease", "end past the lease", "overflow", "misaligned", "lying shape",
    "overflowing shape", "bad dtype", "bad encoding", "negative stride", "lying strides", "out of its input", "overlap",
    "not an Arrow stream",
)  # fmt: skip
NONSENSE = ("unprintable object", "a value of no kind", "deep value")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [*BROKEN_TRAFFIC, *LYING_HANDLES, *NONSENSE])
def test_a_lying_worker_is_killed_and_its_job_told_why(fabric, how):
    """By its effect: the job ends in the right error, and another worker serves."""
    expected = WorkerLost if how in BROKEN_TRAFFIC else InvalidHandle if how in LYING_HANDLES else ProtocolError
    with pytest.raises(expected) as caught:
        fabric.run("Hostile", {"tensor": torch.zeros(16)}, {"how": how}, retries=0)
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))
    assert serves(fabric)


@pytest.mark.parametrize("how", ["a result too many", "unknown code"])
def test_a_worker_that_answers_early_and_goes_on_can_only_waste_its_own_time(how):
    with vw.Fabric(1, **SETTINGS) as fabric:
        if how == "unknown code":
            with pytest.raises(ExecutionError):
                fabric.run("Hostile", params={"how": how})
        else:
            assert fabric.run("Hostile", params={"how": how}) == {"tensor": True}
        with pytest.raises(DeadlineExceeded):  # the supervisor thought it idle
            fabric.run("Identity", {"tensor": 1}, deadline=0.5, retries=0)
        assert serves(fabric)


def test_scribbling_over_the_slot_harms_nobody(fabric):
    fabric.run("Hostile", params={"how": "slot"})
    assert serves(fabric)


def test_at_the_end_every_worker_is_there_and_nothing_is_live(fabric):
    until(lambda: all(w["stage"] == "ready" for w in fabric.workers()) and len(fabric.workers()) == 2, "two workers")
    gc.collect()  # the tracebacks of the errors above
    assert fabric._memory.client_live == 0


@pytest.mark.parametrize(
    "source", ["def f(:", "x = = 1", "return 5", "def f(a, a): pass", "if 1:\nx = 1", "  x = 1", "x = 1 +"]
)
def test_a_syntax_error_in_a_plugin_is_told_with_its_line_and_ends_no_worker(tmp_path, source):
    """Found by a first user: to quote the line, Python makes a system call that was death."""
    (tmp_path / "slip.py").write_text(f"import math\n{source}\n")
    (tmp_path / "fine.py").write_text(
        "from vortex_worker.executor import AbstractExecutor\n"
        "class Fine(AbstractExecutor):\n"
        "    op_type = 'Fine'\n"
        "    def execute(self, inputs, params):\n"
        "        import slip\n"
    )
    with vw.Fabric(1, standby=0, custom_nodes=tmp_path) as fabric:
        ((plugin, message, trace),) = fabric.plugin_errors(60)
        assert plugin.endswith("/slip")
        assert message.startswith(("SyntaxError", "IndentationError"))
        assert source.splitlines()[-1].strip() in trace
        pid = fabric.workers()[0]["pid"]
        with pytest.raises(ExecutionError, match=r"SyntaxError|IndentationError"):
            fabric.run("Fine", retries=0)
        assert fabric.workers()[0]["pid"] == pid
