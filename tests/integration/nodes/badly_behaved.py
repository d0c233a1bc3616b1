"""Nodes that break rules, one way each."""

import ctypes
import mmap
import signal
import sys
import time
import weakref
from typing import ClassVar

import torch

from vortex_worker.executor import AbstractExecutor, Param, Port


class Misbehave(AbstractExecutor):
    """Raises, exits or recurses as ``how`` says."""

    op_type = "Misbehave"
    output_ports = (Port("tensor", "TENSOR"), Port("count", "INT"))
    params = (Param("how", "STRING"),)

    def execute(self, inputs, params):
        return getattr(self, "do_" + params["how"])()

    def do_raise(self):
        raise RuntimeError("the sky is falling")

    def do_raise_unprintable(self):
        class Unprintable(Exception):
            def __str__(self):
                raise ValueError("no words")

        raise Unprintable

    def do_raise_surrogate(self):
        raise RuntimeError("half a pair: \udc80")

    def do_raise_huge(self):
        raise RuntimeError("x" * (32 << 20))

    def do_keyboard_interrupt(self):
        raise KeyboardInterrupt

    def do_exit(self):
        sys.exit(7)

    def do_recurse(self):
        return self.do_recurse()

    def do_return_none(self):
        return None

    def do_return_list(self):
        return [1, 2]

    def do_lack_a_port(self):
        return {"tensor": torch.zeros(1)}

    def do_add_a_port(self):
        return {"tensor": torch.zeros(1), "count": 1, "more": 2}

    def do_mistype_a_port(self):
        return {"tensor": "not a tensor", "count": 1}

    def do_return_an_int_too_large(self):
        return {"tensor": torch.zeros(1), "count": 1 << 70}

    def do_return_a_sparse_tensor(self):
        return {"tensor": torch.zeros(2, 2).to_sparse(), "count": 1}

    def do_return_a_meta_tensor(self):
        return {"tensor": torch.zeros(2, 2, device="meta"), "count": 1}


class Nonsense(AbstractExecutor):
    """Gives what no wire can carry."""

    op_type = "Nonsense"
    output_ports = (Port("value", "*"),)
    params = (Param("what", "STRING"),)

    def execute(self, inputs, params):
        endless = []
        endless.append(endless)
        deep = value = []
        for _ in range(100):
            value.append([])
            value = value[0]
        values = {
            "object": object(), "function": print, "endless": endless, "deep": deep, "key": {1: 2},
            "surrogate": "\udc80", "large": b"x" * (20 << 20), "huge int": 1 << 64,
        }  # fmt: skip
        return {"value": values[params["what"]]}


class BadValidate(AbstractExecutor):
    """Its own validation is broken."""

    op_type = "BadValidate"
    output_ports = ()
    params = (Param("how", "STRING"),)

    def validate(self, inputs, params):
        if params["how"] == "problems":
            return ["'how' asked for problems", "and for two of them"]
        if params["how"] == "nonsense":
            return "a string"
        raise RuntimeError("validation fell over")

    def execute(self, inputs, params):
        return {}


class BadInit(AbstractExecutor):
    """Can't be made."""

    op_type = "BadInit"
    output_ports = ()

    def __init__(self):
        raise RuntimeError("no instance for you")

    def execute(self, inputs, params):
        return {}


class InPlace(AbstractExecutor):
    """Writes to its input without having said so."""

    op_type = "InPlace"
    input_ports = (Port("left", "TENSOR"), Port("right", "*"))
    output_ports = (Port("tensor", "TENSOR"),)
    params = (Param("port", "STRING"),)

    def execute(self, inputs, params):
        tensor = inputs[params["port"]]
        (tensor["deep"][0] if isinstance(tensor, dict) else tensor).add_(1)
        return {"tensor": inputs["left"]}


class Die(AbstractExecutor):
    """Ends its process in one way or another."""

    op_type = "Die"
    input_ports = (Port("tensor", "TENSOR", optional=True),)
    output_ports = ()
    params = (Param("how", "STRING"),)

    def execute(self, inputs, params):
        libc = ctypes.CDLL(None)
        if params["how"] == "segv":
            ctypes.string_at(8)
        elif params["how"] == "abort":
            libc.abort()
        elif params["how"] == "exit":
            libc._exit(5)
        elif params["how"] == "kill":
            signal.raise_signal(signal.SIGKILL)
        elif params["how"] == "execve":
            libc.syscall(59, b"/bin/true", None, None)
        elif params["how"] == "socket":
            libc.socket(2, 1, 0)
        elif params["how"] == "close the socket":
            libc.close(control_socket().fileno())
            time.sleep(3600)
        return {}


class Hog(AbstractExecutor):
    """Takes private memory, more than there is."""

    op_type = "Hog"
    output_ports = (Port("count", "INT"),)
    params = (Param("bytes", "INT"), Param("python", "BOOLEAN", default=False))

    def execute(self, inputs, params):
        if params["python"]:
            return {"count": len(bytearray(params["bytes"]))}
        return {"count": torch.zeros(params["bytes"], dtype=torch.uint8).numel()}


class Left(AbstractExecutor):
    """Fails while it holds a tensor; or counts those that its failures left behind."""

    op_type = "Left"
    output_ports = (Port("count", "INT"),)
    params = (Param("error", "STRING", default=""),)
    held: ClassVar[list[weakref.ref[torch.Tensor]]] = []

    def execute(self, inputs, params):
        if not params["error"]:
            return {"count": sum(one() is not None for one in self.held)}
        tensor = torch.ones(1)
        self.held.append(weakref.ref(tensor))
        raise {"MemoryError": MemoryError, "ValueError": ValueError}[params["error"]]


class Crowded(AbstractExecutor):
    """A convolution that oneDNN has never met, where no page is left for the code that it would write."""

    op_type = "Crowded"
    output_ports = (Port("count", "INT"),)

    def execute(self, inputs, params):
        image, kernel = torch.ones(1, 40, 33, 35), torch.ones(40, 40, 3, 3)
        _ = torch.empty(4, 40, 33, 35)  # what the heap keeps for the result
        held, size = [], 64 << 20
        while size >= mmap.PAGESIZE:
            try:
                held.append(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            except OSError:
                size //= 2
        del _
        torch.nn.functional.conv2d(image, kernel, padding=1)
        return {"count": len(held)}


class MakeLarge(AbstractExecutor):
    """An object of so many bytes."""

    op_type = "MakeLarge"
    output_ports = (Port("large", "LARGE"),)
    params = (Param("bytes", "INT"),)

    def execute(self, inputs, params):
        return {"large": [torch.zeros(params["bytes"], dtype=torch.uint8)]}


class SizeOfLarge(AbstractExecutor):
    """How large it is."""

    op_type = "SizeOfLarge"
    input_ports = (Port("large", "LARGE"),)
    output_ports = (Port("count", "INT"),)

    def execute(self, inputs, params):
        return {"count": inputs["large"][0].numel()}


class Hostile(AbstractExecutor):
    """Speaks to the supervisor by itself: raw bytes, or packets made here."""

    op_type = "Hostile"
    input_ports = (Port("tensor", "TENSOR", optional=True),)
    output_ports = (Port("tensor", "*"),)
    params = (Param("how", "STRING"),)

    def execute(self, inputs, params):
        from vortex_worker.ipc import control_pb2 as pb

        socket = control_socket()
        lease = allocator_frame().f_locals["self"]._tensors._arena
        job_id, how = self.context.job_id, params["how"]

        def send(raw):
            buffer = ctypes.create_string_buffer(raw, len(raw))
            if ctypes.CDLL(None).send(socket.fileno(), buffer, len(raw), 0) != len(raw):
                raise OSError("the sandbox would not let it")

        def packet(**body):
            data = pb.ControlPacket(seq=1, **body).SerializeToString()
            send(len(data).to_bytes(4, "little") + data)

        def result(**fields):
            handle = {"offset": lease.lease_offset, "nbytes": 64, "dtype": pb.F32, "shape": [16]} | fields
            packet(
                job_result=pb.JobResult(job_id=job_id, outputs={"tensor": pb.Value(tensor=pb.TensorHandle(**handle))})
            )

        match how:
            case "garbage":
                send(bytes(range(256)) * 8)
            case "bad protobuf":
                send(b"\x04\0\0\0\xff\xff\xff\xff")
            case "empty frame":
                send(b"\0\0\0\0")
            case "oversized frame":
                send(b"\xff\xff\xff\x7f")
            case "half a frame":
                send(b"\x40\0\0\0abc")
                ctypes.CDLL(None)._exit(0)
            case "no body":
                packet()
            case "another job's result":
                packet(job_result=pb.JobResult(job_id=job_id + 1))
            case "a result too many":
                packet(job_result=pb.JobResult(job_id=job_id, outputs={"tensor": pb.Value(boolean=True)}))
            case "endless timings":
                most = (1 << 64) - 1
                spent = pb.Timings(decode=most, map=most, execute=most, save=most)
                packet(job_result=pb.JobResult(job_id=job_id, outputs={"tensor": pb.Value(int64=1)}, timings=spent))
            case "its result twice":
                for _ in range(2):
                    packet(job_result=pb.JobResult(job_id=job_id, outputs={"tensor": pb.Value(boolean=True)}))
            case "the next one's result, too":
                for number in (job_id, job_id + 1):
                    packet(job_result=pb.JobResult(job_id=number, outputs={"tensor": pb.Value(int64=-number)}))
            case "progress without end":
                report = pb.ControlPacket(job_progress=pb.JobProgress(job_id=job_id, step=1, total=2))
                report = report.SerializeToString()
                while True:
                    send((len(report).to_bytes(4, "little") + report) * 100)
            case "another job's progress":
                packet(job_progress=pb.JobProgress(job_id=job_id + 1, step=1, total=2))
            case "a handshake":
                packet(handshake=pb.Handshake(phase=pb.Handshake.READY, pid=1))
            case "a submit":
                packet(job_submit=pb.JobSubmit(job_id=1, op_type="Identity"))
            case "a shutdown":
                packet(shutdown=pb.Shutdown(reason="no"))
            case "a fault":
                packet(fault=pb.Fault(code="WK-013", reason="\x1b[2Jyou are to blame"))
            case "offset before the lease":
                result(offset=lease.lease_offset - 64)
            case "offset past the lease":
                result(offset=lease.lease_offset + lease.lease_size)
            case "end past the lease":
                result(offset=lease.lease_offset + lease.lease_size - 64, nbytes=128, shape=[32])
            case "overflow":
                result(offset=(1 << 64) - 64, nbytes=128, shape=[32])
            case "misaligned":
                result(offset=lease.lease_offset + 4)
            case "lying shape":
                result(shape=[1 << 20])
            case "overflowing shape":
                result(shape=[1 << 32, 1 << 32, 16])
            case "bad dtype":
                result(dtype=99)
            case "bad encoding":
                result(encoding=7)
            case "negative stride":
                result(strides=[-1])
            case "lying strides":
                result(strides=[1 << 40])
            case "out of its input":
                handle = allocator_frame().f_locals["submit"].inputs["tensor"]
                result(offset=handle.offset, nbytes=handle.nbytes + 64, shape=[handle.nbytes // 4 + 16])
            case "overlap":
                packet(job_result=pb.JobResult(job_id=job_id, outputs={
                    name: pb.Value(tensor=pb.TensorHandle(
                        offset=lease.lease_offset + at, nbytes=128, dtype=pb.U8, shape=[128]))
                    for name, at in (("a", 0), ("b", 64))
                }))  # fmt: skip
            case "not an Arrow stream":
                result(encoding=1)
            case "unprintable object":
                value = pb.Value(object=pb.ObjectHandle(id=1, type="\x1b[2J"))
                packet(job_result=pb.JobResult(job_id=job_id, outputs={"tensor": value}))
            case "a value of no kind":
                packet(job_result=pb.JobResult(job_id=job_id, outputs={"tensor": pb.Value()}))
            case "deep value":
                value = pb.Value(boolean=True)
                for _ in range(40):
                    value = pb.Value(list=pb.List(items=[value]))
                packet(job_result=pb.JobResult(job_id=job_id, outputs={"tensor": value}))
            case "unknown code":
                error = pb.Error(code="WK-999\x1b[2J", message="\x1b[2J\0odd", details={"k\x1b": "v\x1b"})
                packet(job_result=pb.JobResult(job_id=job_id, error=error))
            case "slot":
                slot = frame_with("handler.py", "slot").f_locals["self"].slot
                slot.set_status(5)
                slot.register(1)
                slot.begin(1 << 60)
            case _:
                raise ValueError(how)
        while how != "slot":  # what was sent decides what comes of this job
            time.sleep(3600)
        return {"tensor": 1}


def frame_with(file, attribute):
    """The first frame above whose ``self``, of a module of that name, has the attribute."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if frame.f_code.co_filename.endswith(file) and hasattr(owner, attribute):
            return frame
        frame = frame.f_back
    raise LookupError(attribute)


def control_socket():
    return frame_with("handler.py", "_socket").f_locals["self"]._socket


def allocator_frame():
    return frame_with("engine.py", "_tensors")


def membership():
    import gc

    from vortex_worker.membership import Membership

    (found,) = [found for found in gc.get_objects() if isinstance(found, Membership)]
    return found


class Stuck(AbstractExecutor):
    """Sleeps in native code with Python's lock held: nothing of Python runs in its process any more."""

    op_type = "Stuck"
    output_ports = ()

    def execute(self, inputs, params):
        self.context.progress(1, 2)
        ctypes.PyDLL(None).sleep(3600)
        return {}


class HangUp(AbstractExecutor):
    """Closes its end of the socket, which nothing else holds any more, and lives on."""

    op_type = "HangUp"
    output_ports = ()

    def execute(self, inputs, params):
        self.context.progress(1, 2)
        membership().leave()
        ctypes.CDLL(None).close(control_socket().fileno())
        time.sleep(3600)
        return {}


class Deaf(AbstractExecutor):
    """Stops the thread that would hear of the supervisor's end, and goes on."""

    op_type = "Deaf"
    output_ports = ()

    def execute(self, inputs, params):
        membership().leave()
        self.context.progress(1, 2)
        while True:
            time.sleep(0.1)
