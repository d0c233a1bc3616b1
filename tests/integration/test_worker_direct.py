"""A worker launched directly, by a supervisor of the test's own: only environment, socket and memory."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from vortex_worker._core.arena import Arena
from vortex_worker.ipc import control_pb2 as pb

COMMAND = [sys.executable, "-P", "-m", "vortex_worker.main"]
LEASE = (1 << 21, 1 << 21)  # offset and size


def environment(**settings):
    keep = {key: value for key, value in os.environ.items() if key.startswith(("PYTHON", "PATH", "LD_"))}
    return {**keep, "VORTEX_THREADS": "1", **settings}


class Supervisor:
    """Speaks the protocol byte by byte: a length, then what protobuf's own runtime made."""

    def __init__(self, **settings):
        self.arena = Arena.create(8 << 20)
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(60)
        env = environment(VORTEX_SOCKET=f"fd:{theirs.fileno()}", VORTEX_SHM_FD=str(self.arena.fd), **settings)
        self.process = subprocess.Popen(
            COMMAND,
            env=env,
            pass_fds=(theirs.fileno(), self.arena.fd),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ours.close()
        self.process.kill()
        self.process.communicate()
        self.arena.close()

    def raw(self, data):
        self.ours.sendall(data)

    def send(self, **body):
        data = pb.ControlPacket(seq=1, **body).SerializeToString()
        self.raw(struct.pack("<I", len(data)) + data)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            try:
                part = self.ours.recv(count - len(data))
            except ConnectionResetError:  # an end, too: of one that had not read all that we sent
                return None
            if not part:
                return None
            data += part
        return data

    def recv(self):
        """The next packet's body, or None at the end of the stream."""
        header = self.exactly(4)
        if header is None:
            return None
        packet = pb.ControlPacket.FromString(self.exactly(struct.unpack("<I", header)[0]))
        return getattr(packet, packet.WhichOneof("body"))

    def ready(self):
        """Through the three handshakes."""
        hello = self.recv()
        assert (hello.phase, hello.pid) == (pb.Handshake.JOINING, self.process.pid)
        self.send(
            handshake_ack=pb.HandshakeAck(
                accepted=True, slot=3, lease_offset=LEASE[0], lease_size=LEASE[1], heartbeat_ms=20
            )
        )
        locked = self.recv()
        assert locked.phase == pb.Handshake.LOCKED
        assert locked.sandbox.enforced
        assert self.recv().phase == pb.Handshake.READY
        return self

    def result(self):
        """The next result; progress reports before it are passed over."""
        while isinstance(answer := self.recv(), pb.JobProgress):
            pass
        return answer

    def run(self, op_type, job_id=1, inputs=None, params=None):
        self.send(job_submit=pb.JobSubmit(job_id=job_id, op_type=op_type, inputs=inputs, params=params))
        return self.result()

    def end(self):
        """The exit status, and what it wrote."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()


@pytest.fixture(scope="module")
def worker():
    with Supervisor() as supervisor:
        yield supervisor.ready()


def test_folders_of_models_and_the_libraries_they_need(tmp_path):
    with Supervisor(VORTEX_MODELS=str(tmp_path)) as supervisor:
        supervisor.ready()
        assert supervisor.run("CheckpointLoaderSimple", params=None).error.code


@pytest.mark.parametrize("spelling", ["{folder}/socket", "socket", "{folder}/link/socket", "../{name}/socket"])
def test_a_socket_by_path_and_an_arena_by_name(tmp_path, spelling):
    """Any spelling: relative to where it was started, and through links. Neither is there when it is used."""
    (tmp_path / "link").symlink_to(".")
    name = f"/vortex-test-{os.getpid()}"
    arena = Arena.create(8 << 20, name=name)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            listener.settimeout(60)
            settings = {
                "VORTEX_SOCKET": spelling.format(folder=tmp_path, name=tmp_path.name),
                "VORTEX_SHM_NAME": name,
            }
            worker = subprocess.Popen(COMMAND, env=environment(**settings), cwd=tmp_path, stderr=subprocess.PIPE)
            try:
                ours, _ = listener.accept()
                ours.settimeout(60)
                supervisor = Supervisor.__new__(Supervisor)
                supervisor.process, supervisor.ours, supervisor.arena = worker, ours, arena
                with ours:
                    assert supervisor.ready()
                    assert supervisor.run("Nothing").error.code == "WK-003"
                assert worker.wait(60) == 0
            finally:
                worker.kill()
                worker.communicate()
    finally:
        os.unlink(f"/dev/shm{name}")
        arena.close()


# ------------------------------------------------------------------ nothing to work with


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "VORTEX_SOCKET"),
        ({"VORTEX_SOCKET": "/no/such/socket"}, "VORTEX_SHM"),
        ({"VORTEX_SOCKET": "/no/such/socket", "VORTEX_SHM_NAME": "/vortex-test-missing"}, "VORTEX_SHM_NAME"),
        ({"VORTEX_SOCKET": "/no/such/socket", "VORTEX_SHM_FD": "777"}, "VORTEX_SHM_FD"),
        ({"VORTEX_SOCKET": "fd:888", "VORTEX_SHM_NAME": "/vortex-test-missing"}, "VORTEX_SHM_NAME"),
        ({"VORTEX_SOCKET": "fd:1", "VORTEX_SHM_NAME": "/x", "VORTEX_LOG_LEVEL": "loud"}, "VORTEX_LOG_LEVEL"),
        ({"VORTEX_SOCKET": "fd:1", "VORTEX_SHM_NAME": "/x", "VORTEX_SECCOMP_POLICY": "lenient"}, "lenient"),
    ],
)
def test_bad_settings_end_in_status_2_and_one_line_that_names_them(settings, named):
    done = subprocess.run(COMMAND, env=environment(**settings), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("what", ["socket", "memory", "size"])
def test_what_is_there_but_is_not_what_it_should_be_is_told(what, tmp_path):
    arena = Arena.create(4 << 20)
    ours, theirs = socket.socketpair()
    null = os.open("/dev/null", os.O_RDWR)
    plain = os.memfd_create("no-arena")
    os.ftruncate(plain, 4 << 20)
    settings = {
        "socket": {"VORTEX_SOCKET": str(tmp_path / "none"), "VORTEX_SHM_FD": str(arena.fd)},
        "memory": {"VORTEX_SOCKET": f"fd:{theirs.fileno()}", "VORTEX_SHM_FD": str(plain)},
        "size": {
            "VORTEX_SOCKET": f"fd:{theirs.fileno()}",
            "VORTEX_SHM_FD": str(arena.fd),
            "VORTEX_SHM_SIZE": str(1 << 40),
        },
    }[what]
    try:
        done = subprocess.run(
            COMMAND,
            env=environment(**settings),
            pass_fds=(arena.fd, theirs.fileno(), plain),
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for fd in (null, plain):
            os.close(fd)
        ours.close()
        theirs.close()
        arena.close()
    assert done.returncode == 2, done.stderr
    assert "worker.config" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refusal_is_told():
    with Supervisor() as supervisor:
        supervisor.recv()
        supervisor.send(handshake_ack=pb.HandshakeAck(accepted=False, reason="no room"))
        status, said = supervisor.end()
    assert status == 2
    assert "no room" in said


@pytest.mark.parametrize("fields", [{"lease_offset": 1}, {"lease_size": 1 << 40}, {"lease_size": 0}, {"slot": 256}])
def test_a_lease_or_slot_that_cannot_be_is_told(fields):
    with Supervisor() as supervisor:
        supervisor.recv()
        good = {"lease_offset": LEASE[0], "lease_size": LEASE[1], "slot": 0}
        supervisor.send(handshake_ack=pb.HandshakeAck(accepted=True, **good | fields))
        status, said = supervisor.end()
    assert status == 2, said
    assert "Traceback" not in said


# ----------------------------------------------------------------------------- bad traffic


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x04\0\0\0\xff\xff\xff\xff",
        b"\x02\0\0\0\x08\x01",  # a packet without a body
        struct.pack("<I", 100) + b"x" * 10,  # cut short
    ],
    ids=["empty", "oversized", "no packet", "no body", "truncated"],
)
def test_malformed_frames_get_a_fault_and_an_orderly_end(data):
    with Supervisor().ready() as supervisor:
        supervisor.raw(data)
        supervisor.ours.shutdown(socket.SHUT_WR) if len(data) > 10 else None
        answer = supervisor.recv()
        if answer is not None:  # a hang-up inside a frame may end it before it can say so
            assert isinstance(answer, pb.Fault)
            assert answer.code == "WK-013"
        status, said = supervisor.end()
    assert status in ((0, 3) if len(data) > 10 else (3,)), said


def test_malformed_frames_while_a_job_runs_are_no_error_of_the_jobs():
    with Supervisor().ready() as supervisor:
        supervisor.send(job_submit=pb.JobSubmit(job_id=1, op_type="Sleep", params={"seconds": pb.Value(float64=3600)}))
        assert supervisor.recv().job_id == 1  # progress
        supervisor.raw(b"\xff\xff\xff\xff")
        assert supervisor.result().error.code == "WK-007"
        assert supervisor.recv().code == "WK-013"
        assert supervisor.end()[0] == 3


def test_a_cancellation_of_a_job_that_waits_in_the_worker_is_seen():
    with Supervisor().ready() as supervisor:
        for job_id, seconds in ((1, 1.0), (2, 3600.0)):
            params = {"seconds": pb.Value(float64=seconds)}
            supervisor.send(job_submit=pb.JobSubmit(job_id=job_id, op_type="Sleep", params=params))
        supervisor.send(job_cancel=pb.JobCancel(job_id=2))
        assert supervisor.result().outputs["tensor"].null
        assert supervisor.result().error.code == "WK-007"


def test_and_so_is_one_that_came_together_with_its_job():
    with Supervisor().ready() as supervisor:
        params = {"seconds": pb.Value(float64=3600)}
        bodies = (
            {"job_submit": pb.JobSubmit(job_id=1, op_type="Sleep", params={"seconds": pb.Value(float64=0)})},
            {"job_submit": pb.JobSubmit(job_id=2, op_type="Sleep", params=params)},
            {"job_cancel": pb.JobCancel(job_id=2)},
        )
        packets = [pb.ControlPacket(seq=9, **body).SerializeToString() for body in bodies]
        supervisor.raw(b"".join(struct.pack("<I", len(packet)) + packet for packet in packets))
        assert supervisor.result().outputs["tensor"].null
        error = supervisor.result().error
        assert error.code == "WK-007"
        assert error.message == "cancelled before it ran"


def test_a_cancellation_is_not_of_a_job_of_that_number_which_comes_after_it(worker):
    """Found by the benchmark: a job that was taken back, and given to the same worker again, was cancelled."""
    submit = {"job_submit": pb.JobSubmit(job_id=12, op_type="Identity", inputs={"tensor": pb.Value(int64=5)})}
    worker.send(**submit)
    assert worker.result().outputs["tensor"].int64 == 5
    bodies = ({"job_cancel": pb.JobCancel(job_id=12)}, submit)
    packets = [pb.ControlPacket(seq=9, **body).SerializeToString() for body in bodies]
    worker.raw(b"".join(struct.pack("<I", len(packet)) + packet for packet in packets))
    assert worker.result().outputs["tensor"].int64 == 5


def handle(**fields):
    good = {"offset": LEASE[0] + LEASE[1], "nbytes": 64, "dtype": pb.F32, "shape": [16]}
    return {"tensor": pb.Value(tensor=pb.TensorHandle(**good | fields))}


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 8 << 20},
        {"offset": (8 << 20) - 64, "nbytes": 128, "shape": [32]},
        {"offset": 0},
        {"offset": LEASE[0] + 4},
        {"offset": (1 << 64) - 64, "nbytes": 128, "shape": [32]},
        {"nbytes": (1 << 64) - 64, "shape": [1 << 60]},
        {"shape": [17]},
        {"shape": [1 << 62, 1 << 62]},
        {"shape": [1] * 40},
        {"dtype": 0},
        {"dtype": 99},
        {"strides": [-1]},
        {"strides": [2]},
        {"strides": [1, 1]},
        {"encoding": 1},
        {"encoding": 1, "dtype": 0, "shape": []},
    ],
    ids=str,
)
def test_a_bad_handle_is_wk_002_and_the_worker_serves_on(worker, fields):
    result = worker.run("Identity", inputs=handle(**fields))
    assert result.error.code == "WK-002", result
    assert worker.run("Identity", inputs=handle()).outputs["tensor"].tensor.nbytes == 64


def test_a_value_of_no_kind_and_an_unknown_object_fail_their_job_only(worker):
    assert worker.run("Identity", inputs={"tensor": pb.Value()}).error.code == "WK-013"
    unknown = pb.Value(object=pb.ObjectHandle(id=9, type="MODEL"))
    assert worker.run("Identity", inputs={"tensor": unknown}).error.code == "WK-012"
    assert worker.run("Identity", inputs={"tensor": pb.Value(int64=5)}).outputs["tensor"].int64 == 5


def test_fragments_and_bursts_are_the_same_conversation(worker):
    packets = [pb.ControlPacket(seq=n, ping=pb.Ping(nonce=n)).SerializeToString() for n in range(1, 6)]
    frames = b"".join(struct.pack("<I", len(p)) + p for p in packets)
    worker.raw(frames)
    assert [worker.recv().nonce for _ in packets] == [1, 2, 3, 4, 5]
    for byte in frames:
        worker.raw(bytes([byte]))
    assert [worker.recv().nonce for _ in packets] == [1, 2, 3, 4, 5]


def test_releases_of_what_is_not_held_are_no_error(worker):
    worker.send(release=pb.Release(offsets=[0, 1, 1 << 63], objects=[7]))
    assert worker.run("Identity", inputs={"tensor": pb.Value(boolean=True)}).outputs["tensor"].boolean


def test_a_deadline_that_has_passed_ends_a_job_that_reports(worker):
    worker.send(
        job_submit=pb.JobSubmit(job_id=8, op_type="Sleep", params={"seconds": pb.Value(float64=60)}, deadline=1)
    )
    assert worker.result().error.code == "WK-008"


def test_a_cancellation_ends_the_job_it_names(worker):
    worker.send(job_submit=pb.JobSubmit(job_id=11, op_type="Sleep", params={"seconds": pb.Value(float64=60)}))
    assert worker.recv().job_id == 11  # progress
    worker.send(job_cancel=pb.JobCancel(job_id=99))
    worker.send(job_cancel=pb.JobCancel(job_id=11))
    assert worker.result().error.code == "WK-007"


# ---------------------------------------------------------------------------------- the end


def test_shutdown_ends_it_in_good_order():
    with Supervisor().ready() as supervisor:
        supervisor.send(shutdown=pb.Shutdown(reason="enough"))
        assert supervisor.end()[0] == 0


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_when_its_supervisor_hangs_up_also_in_the_middle_of_a_job(busy):
    with Supervisor().ready() as supervisor:
        if busy:
            supervisor.send(
                job_submit=pb.JobSubmit(job_id=1, op_type="Sleep", params={"seconds": pb.Value(float64=3600)})
            )
            supervisor.recv()
        supervisor.ours.close()
        assert supervisor.end()[0] == 0


def test_a_stopped_worker_ends_too_once_it_goes_on():
    with Supervisor().ready() as supervisor:
        os.kill(supervisor.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, supervisor.process.pid, os.WSTOPPED | os.WNOWAIT)  # every thread has
        supervisor.ours.close()
        time.sleep(0.05)
        assert supervisor.process.poll() is None
        os.kill(supervisor.process.pid, signal.SIGCONT)
        assert supervisor.end()[0] == 0
