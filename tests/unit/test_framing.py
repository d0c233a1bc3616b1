"""Frames: the parser on streams cut everywhere, then sockets of every temper."""

import errno
import itertools
import os
import random
import resource
import signal
import socket
import struct
import threading
import time

import pytest

from vortex_worker._core.framing import HEADER_SIZE, MAX_FRAME, FrameReader, FrameSocket
from vortex_worker.errors import ProtocolError

BODIES = [b"a", b"bc", b"def", b"ghij", b"klmno", b"p" * 64, b"q" * 200, b"r"]


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


STREAM = b"".join(map(frame, BODIES))


@pytest.fixture
def pair():
    """A FrameSocket, and the plain socket at its other end."""
    ours, theirs = socket.socketpair()
    with theirs, FrameSocket(ours.detach()) as framed:
        yield framed, theirs


@pytest.fixture
def two():
    """Two FrameSockets facing each other."""
    one, other = socket.socketpair()
    with FrameSocket(one.detach()) as left, FrameSocket(other.detach()) as right:
        yield left, right


class TestParser:
    @pytest.mark.parametrize("limit", [200, MAX_FRAME])
    def test_every_cut_in_two(self, limit):
        for cut in range(len(STREAM) + 1):
            reader = FrameReader(limit)
            assert reader.feed(STREAM[:cut]) + reader.feed(STREAM[cut:]) == BODIES
            assert reader.pending == 0

    @pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 1000])
    def test_pieces_of_one_size(self, step):
        reader = FrameReader()
        pieces = [reader.feed(STREAM[at : at + step]) for at in range(0, len(STREAM), step)]
        assert list(itertools.chain(*pieces)) == BODIES

    def test_random_frames_in_random_pieces(self):
        rng = random.Random(7)
        bodies = [rng.randbytes(rng.choice([1, 10, 1000, 70_000, 300_000])) for _ in range(100)]
        stream = b"".join(map(frame, bodies))
        reader = FrameReader(300_000)
        found, at = [], 0
        while at < len(stream):
            size = rng.choice([1, 3, 100, 5000, 200_000])
            found += reader.feed(stream[at : at + size])
            at += size
            assert reader.capacity <= 300_000 + HEADER_SIZE
        assert found == bodies

    @pytest.mark.parametrize("length", [0, 101, 2**31 - 1, 2**31, 2**32 - 1])
    def test_bad_length(self, length):
        reader = FrameReader(100)
        with pytest.raises(ProtocolError, match=f"announces {length} bytes: it must be 1 to 100"):
            reader.feed(struct.pack("<I", length))
        with pytest.raises(ProtocolError):  # and it stays bad
            reader.feed(frame(b"good"))

    def test_the_limit_itself_is_allowed(self):
        body = bytes(100)
        assert FrameReader(100).feed(frame(body)) == [body]

    def test_an_announcement_takes_no_memory(self):
        reader = FrameReader()
        empty = reader.capacity
        assert reader.feed(struct.pack("<I", MAX_FRAME) + b"x" * 1000) == []
        assert reader.capacity == empty <= 1 << 16
        reader.feed(bytes(1 << 20))
        assert reader.capacity <= 4 << 20
        assert reader.feed(bytes(MAX_FRAME - 1000 - (1 << 20)))[0][:1000] == b"x" * 1000
        reader.feed(b"\1")
        assert reader.capacity == empty  # given back

    @pytest.mark.parametrize("limit", [0, -1, 2**30 + 1, 2**32, 2**70])
    def test_bad_limits(self, limit):
        with pytest.raises(ValueError, match="max_frame"):
            FrameReader(limit)


class TestReceiving:
    def test_coalesced_frames_come_one_by_one(self, pair):
        framed, peer = pair
        peer.sendall(STREAM)
        assert [framed.recv() for _ in BODIES] == BODIES

    def test_a_buffered_frame_costs_no_system_call(self, pair):
        framed, peer = pair
        peer.sendall(STREAM)
        assert framed.recv() == BODIES[0]
        with open(os.devnull) as null:  # any call on the socket would now fail
            kept = os.dup(framed.fileno())
            os.dup2(null.fileno(), framed.fileno())
        assert [framed.recv(timeout) for timeout in (None, 0, 1, None, 0, 1, 0)] == BODIES[1:]
        with pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)):
            framed.recv()
        os.dup2(kept, framed.fileno())
        os.close(kept)

    def test_fragments(self, pair):
        framed, peer = pair

        def drip():
            for byte in frame(b"hello") + frame(b"again"):
                peer.sendall(bytes([byte]))
                time.sleep(0.001)

        thread = threading.Thread(target=drip)
        thread.start()
        assert framed.recv() == b"hello"
        assert framed.recv(timeout=10) == b"again"
        thread.join()

    @pytest.mark.parametrize("cut", range(1, 9))
    def test_eof_inside_a_frame(self, pair, cut):
        framed, peer = pair
        peer.sendall(frame(b"whole") + frame(b"parts")[:cut])
        peer.close()
        assert framed.recv() == b"whole"
        for _ in range(2):
            with pytest.raises(ProtocolError, match="the stream ended inside"):
                framed.recv()
        assert framed.eof

    def test_eof_between_frames(self, pair):
        framed, peer = pair
        peer.sendall(frame(b"last"))
        peer.shutdown(socket.SHUT_WR)
        assert framed.recv() == b"last"
        assert not framed.eof
        assert [framed.recv(), framed.recv(1), framed.recv(0), framed.poll()] == [None, None, None, []]
        assert framed.eof

    def test_a_peer_that_dies_with_bytes_unread_is_an_eof(self, pair):
        framed, peer = pair
        framed.send(b"never read")
        peer.sendall(frame(b"last"))
        peer.close()  # a reset, for the kernel
        assert framed.recv() == b"last"
        assert framed.recv() is None

    def test_bad_length(self, pair):
        framed, peer = pair
        peer.sendall(frame(b"good") + bytes(4))
        assert framed.recv() == b"good"
        with pytest.raises(ProtocolError, match="announces 0 bytes") as error:
            framed.recv()
        assert error.value.details == {"length": "0", "limit": str(MAX_FRAME)}

    @pytest.mark.parametrize("blocking", [True, False])
    def test_timeouts(self, pair, blocking):
        framed, peer = pair
        os.set_blocking(framed.fileno(), blocking)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            framed.recv(timeout=0.05)
        assert 0.05 <= time.monotonic() - start < 5
        for timeout in (0, -1, float("nan")):
            with pytest.raises(TimeoutError):
                framed.recv(timeout)
        peer.sendall(frame(b"parts")[:6])
        with pytest.raises(TimeoutError):
            framed.recv(timeout=0)
        peer.sendall(frame(b"parts")[6:])
        assert framed.recv(timeout=0) == b"parts"  # what had come was kept
        threading.Timer(0.05, peer.sendall, [frame(b"late")]).start()
        assert framed.recv(timeout=1e300) == b"late"

    def test_a_nonblocking_descriptor_waits_too(self, pair):
        framed, peer = pair
        os.set_blocking(framed.fileno(), False)
        threading.Timer(0.05, peer.sendall, [frame(b"late")]).start()
        assert framed.recv() == b"late"

    def test_the_gil_is_free_while_waiting(self, pair):
        framed, peer = pair
        counted = []

        def count():
            counted.append(sum(range(100_000)))
            peer.sendall(frame(b"done"))

        threading.Thread(target=count).start()
        assert framed.recv(timeout=10) == b"done"
        assert counted


class TestPolling:
    def test_nothing(self, pair):
        framed, _ = pair
        assert framed.poll() == []
        assert not framed.eof

    def test_all_that_is_there(self, pair):
        framed, peer = pair
        peer.sendall(STREAM + frame(b"cut")[:5])
        assert framed.poll() == BODIES
        assert framed.poll() == []
        peer.sendall(frame(b"cut")[5:])
        assert framed.poll() == [b"cut"]

    def test_also_what_recv_left_in_the_buffer(self, pair):
        framed, peer = pair
        peer.sendall(STREAM)
        assert framed.recv() == BODIES[0]
        peer.sendall(frame(b"more"))
        assert framed.poll() == [*BODIES[1:], b"more"]

    def test_eof(self, pair):
        framed, peer = pair
        peer.sendall(frame(b"last"))
        peer.close()
        assert framed.poll() == [b"last"]
        assert framed.poll() == []
        assert framed.eof

    def test_good_frames_come_before_a_bad_one(self, pair):
        framed, peer = pair
        peer.sendall(frame(b"good") + b"\xff" * 4)
        assert framed.poll() == [b"good"]
        with pytest.raises(ProtocolError):
            framed.poll()

    def test_a_large_frame_by_and_by(self, pair):
        framed, peer = pair
        body = random.Random(1).randbytes(3 << 20)
        thread = threading.Thread(target=peer.sendall, args=[frame(body)])
        thread.start()
        found = []
        while not found:
            found = framed.poll()
        assert found == [body]
        thread.join()


class TestSending:
    @pytest.mark.parametrize("size", [1, 64, 65_535, 65_536, 65_537, 1 << 20, MAX_FRAME])
    @pytest.mark.parametrize("blocking", [True, False])
    def test_round_trip(self, two, size, blocking):
        left, right = two
        os.set_blocking(left.fileno(), blocking)
        os.set_blocking(right.fileno(), blocking)
        body = random.Random(size).randbytes(size)
        thread = threading.Thread(target=left.send, args=[body])
        thread.start()
        assert right.recv(timeout=60) == body
        thread.join()

    def test_one_system_call_up_to_64_kib(self):
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps the bounds of each send
        with peer, FrameSocket(ours.detach()) as framed:
            for size in (1, 65_536):
                body = bytes(size)
                framed.send(body)
                assert peer.recv(1 << 20) == frame(body)
            body = random.Random(1).randbytes(150_000)
            framed.send(body)
            assert [len(peer.recv(1 << 20)) for _ in range(2)] == [4 + 65_536, 150_000 - 65_536]

    def test_sizes(self, pair):
        framed, _ = pair
        with pytest.raises(ValueError, match="0 bytes"):
            framed.send(b"")
        with pytest.raises(ValueError, match=f"{MAX_FRAME + 1} bytes: it must be 1 to {MAX_FRAME}"):
            framed.send(bytes(MAX_FRAME + 1))
        for body in (None, "text", bytearray(b"x")):
            with pytest.raises(TypeError):
                framed.send(body)

    def test_nobody_reads(self, pair):
        framed, peer = pair
        peer.close()
        with pytest.raises(BrokenPipeError):
            framed.send(b"x")

    def test_a_cut_frame_ends_the_stream(self, pair):
        framed, _ = pair
        with pytest.raises(TimeoutError, match="the peer did not take"):
            framed.send(bytes(4 << 20), timeout=0.02)
        with pytest.raises(BrokenPipeError, match="cut short"):
            framed.send(b"more")

    def test_a_frame_that_did_not_begin_to_leave_is_harmless(self, pair):
        framed, peer = pair
        sent = 0
        while True:
            try:
                framed.send(bytes(1000), timeout=0)
            except TimeoutError:
                break
            sent += 1
        got = FrameReader()
        bodies = []
        while len(bodies) < sent:
            bodies += got.feed(peer.recv(1 << 20))
        framed.send(b"after")
        assert got.feed(peer.recv(100)) == [b"after"]


class TestSignals:
    @pytest.fixture(autouse=True)
    def alarm(self):
        before = signal.signal(signal.SIGALRM, lambda *_: self.rang.append(time.monotonic()))
        self.rang = []
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    @pytest.mark.parametrize("timeout", [None, 10])
    def test_interrupted_recv_goes_on(self, pair, timeout):
        framed, peer = pair
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        threading.Timer(0.15, peer.sendall, [frame(b"late")]).start()
        assert framed.recv(timeout) == b"late"
        assert len(self.rang) >= 3

    def test_interruptions_do_not_prolong_a_timeout(self, pair):
        framed, _ = pair
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            framed.recv(timeout=0.1)
        assert time.monotonic() - start < 5

    def test_a_handler_that_raises_ends_the_wait(self, pair):
        framed, peer = pair

        def handler(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, handler)
        peer.sendall(frame(b"parts")[:5])
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            framed.recv()
        peer.sendall(frame(b"parts")[5:])
        assert framed.recv() == b"parts"

    def test_interrupted_send_goes_on(self, pair):
        framed, peer = pair
        body = random.Random(3).randbytes(8 << 20)
        received = []

        def drain():
            reader = FrameReader()
            while not received:
                received.extend(reader.feed(peer.recv(100_000)))
                time.sleep(0.001)

        thread = threading.Thread(target=drain)
        thread.start()
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        framed.send(body)
        signal.setitimer(signal.ITIMER_REAL, 0)
        thread.join()
        assert received == [body]
        assert self.rang


class TestLife:
    def test_it_owns_its_descriptor(self):
        ours, theirs = socket.socketpair()
        with theirs:
            framed = FrameSocket(ours.detach())
            fd = framed.fileno()
            framed.close()
            framed.close()
            assert framed.closed
            assert framed.fileno() == -1
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                os.fstat(fd)
            for use in (framed.recv, framed.poll, lambda: framed.send(b"x")):
                with pytest.raises(ValueError, match="closed"):
                    use()

    def test_dropping_it_closes(self):
        ours, theirs = socket.socketpair()
        with theirs:
            framed = FrameSocket(ours.detach())
            del framed
            assert theirs.recv(1) == b""

    def test_a_refused_one_does_not_close(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with pytest.raises(ValueError, match="max_frame"):
                FrameSocket(ours.fileno(), 0)
            os.fstat(ours.fileno())
        with pytest.raises(ValueError, match="not a descriptor"):
            FrameSocket(-1)

    def test_one_thread_a_direction(self, pair):
        framed, peer = pair
        result = []
        thread = threading.Thread(target=lambda: result.append(framed.recv()))
        thread.start()
        time.sleep(0.1)
        for use in (framed.recv, framed.poll):
            with pytest.raises(RuntimeError, match="another thread"):
                use()
        framed.send(b"the other direction is free")
        peer.sendall(frame(b"x"))
        thread.join()
        assert result == [b"x"]

    def test_close_wakes_a_thread_that_waits(self, pair):
        framed, _ = pair
        result = []
        fd = framed.fileno()
        thread = threading.Thread(target=lambda: result.append(framed.recv()))
        thread.start()
        time.sleep(0.1)
        framed.close()
        thread.join(10)
        assert not thread.is_alive()
        assert result == [None]
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)

    def test_a_wait_can_be_ended_and_nothing_is_lost(self, pair):
        framed, peer = pair
        result = []
        thread = threading.Thread(target=lambda: result.extend([framed.recv(), framed.recv()]))
        thread.start()
        peer.sendall(frame(b"before"))
        framed.stop_receiving()
        thread.join(10)
        assert not thread.is_alive()
        assert result in ([b"before", None], [None, None])
        assert framed.taken == (result[0] == b"before")
        framed.send(b"the other direction is open")
        assert peer.recv(100)[4:] == b"the other direction is open"

    def test_what_came_before_the_end_can_still_be_taken(self, pair):
        framed, peer = pair
        peer.sendall(frame(b"one") + frame(b"two"))
        framed.stop_receiving()
        assert framed.recv(0) == b"one"
        assert framed.buffered == 4 + len(b"two")
        assert framed.poll() == [b"two"]
        assert (framed.buffered, framed.taken, framed.recv()) == (0, 2, None)

    @pytest.mark.parametrize("timeout", [None, 10])
    def test_looking_before_waiting_changes_nothing_but_the_time(self, two, timeout):
        here, there = two
        here.spin()
        there.spin()

        def answer():
            while (body := there.recv()) is not None:
                there.send(body[::-1])

        thread = threading.Thread(target=answer)
        thread.start()
        for number in range(2000):
            if number % 500 == 0:
                time.sleep(0.01)  # both have given up looking
            here.send(b"number %d" % number)
            assert here.recv(timeout) == (b"number %d" % number)[::-1]
        with pytest.raises(TimeoutError):
            here.recv(0.01)
        here.close()
        thread.join(10)
        assert not thread.is_alive()

    def test_who_shares_a_cpu_with_the_peer_is_told(self, two):
        here, there = two
        here.spin()
        there.spin()
        allowed = os.sched_getaffinity(0)
        cpu = {min(allowed)}

        def answer():
            os.sched_setaffinity(0, cpu)
            while (body := there.recv()) is not None:
                there.send(body)

        assert not here.crowded(1)
        thread = threading.Thread(target=answer)
        thread.start()
        os.sched_setaffinity(0, cpu)
        try:
            for _ in range(20_000):
                here.send(b"x")
                assert here.recv(10) == b"x"
                if len(allowed) > 1 and here.crowded(8):
                    break
            else:
                assert len(allowed) == 1  # where nobody ever looks
        finally:
            os.sched_setaffinity(0, allowed)
            here.close()
            thread.join(10)
        assert not thread.is_alive()
        assert not here.crowded(8)  # counted anew

    def test_many_frames_leak_nothing(self, two):
        left, right = two
        body = bytes(100_000)
        for size in (1, 100, 100_000):
            for _ in range(1000):
                left.send(body[:size])
                right.recv()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20_000):
            left.send(body)
            right.recv()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; all: 2 GB
