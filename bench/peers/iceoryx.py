"""iceoryx2: request and response in shared memory, with events to wake who waits."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from peers import Peer, as_bytes, forkserver, from_bytes, warm_up

_LARGEST = 64 << 20  # bytes of one message


class WorkerDied(Exception):
    pass


class End:
    """One process's end: both services of events, and the request-response service."""

    def __init__(self, name: str, ours: str, theirs: str) -> None:
        import iceoryx2 as iox

        iox.set_log_level(iox.LogLevel.Error)
        self.node = (
            iox.NodeBuilder.new().signal_handling_mode(iox.SignalHandlingMode.Disabled).create(iox.ServiceType.Ipc)
        )
        event = [
            self.node.service_builder(iox.ServiceName.new(f"{name}/{end}")).event().open_or_create()
            for end in (ours, theirs)
        ]
        self.listener = event[0].listener_builder().create()
        self.notifier = event[1].notifier_builder().create()
        bytes_type = iox.Slice[ctypes.c_uint8]
        self.service = (
            self.node.service_builder(iox.ServiceName.new(name))
            .request_response(bytes_type, bytes_type)
            .open_or_create()
        )


def serve(name: str, ready: Any) -> None:
    warm_up()
    end = End(name, "server", "client")
    server = end.service.server_builder().initial_max_slice_len(_LARGEST).create()
    ready.send(None)
    while True:
        end.listener.blocking_wait()
        while (request := server.receive()) is not None:
            tensor = from_bytes(request.payload().as_memory_view())
            source = as_bytes(tensor)
            response = request.loan_slice_uninit(len(source))
            response.payload().as_memory_view().cast("B")[:] = source
            response.assume_init().send()
            end.notifier.notify()
            del tensor, source
            request.delete()


class Subject(Peer):
    title = "iceoryx2"
    requires = ("iceoryx2==0.10.0",)
    distribution = "iceoryx2"
    docs = "https://github.com/eclipse-iceoryx/iceoryx2/tree/main/examples/python/request_response_with_events"
    use = (
        "request and response of byte slices, an event each way to wake the other end; a message is written into "
        "memory on loan, so a tensor that exists already is copied once each way; a result is a view of that memory "
        "until the next call"
    )
    deaths = (WorkerDied,)

    def setup(self, workers: int) -> None:
        import iceoryx2 as iox

        self._timeout = iox.Duration.from_millis(5)
        self._count = 0
        self._context = forkserver(__name__)
        self._kept: dict[int, Any] = {}
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> tuple[Any, End, Any]:
        self._count += 1
        name = f"bench/{os.getpid()}/{self._count}"
        ready, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(name, theirs), daemon=True)
        process.start()
        theirs.close()
        ready.recv()
        end = End(name, "client", "server")
        return process, end, end.service.client_builder().initial_max_slice_len(_LARGEST).create()

    def call(self, tensor: Any, worker: int = 0) -> Any:
        process, end, client = self._workers[worker]
        self._kept.pop(worker, None)
        source = as_bytes(tensor)
        request = client.loan_slice_uninit(len(source))
        request.payload().as_memory_view().cast("B")[:] = source
        pending = request.assume_init().send()
        end.notifier.notify()
        while not (response := pending.receive()):
            if not end.listener.timed_wait(self._timeout) and not process.is_alive():
                raise WorkerDied(f"exit status {process.exitcode}")
        self._kept[worker] = response, pending
        return from_bytes(response.payload().as_memory_view())

    def pid(self) -> int:
        pid: int = self._workers[0][0].pid
        return pid

    def restart(self) -> None:
        process, _, _ = self._workers[0]
        process.join()
        self._workers[0] = self._start()

    def close(self) -> None:
        for process, _, _ in self._workers:
            process.kill()
            process.join()
        self._workers.clear()
