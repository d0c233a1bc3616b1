"""gRPC on a Unix socket, with bytes as its messages."""

from __future__ import annotations

import tempfile
from typing import Any

from peers import Peer, as_bytes, forkserver, from_bytes, warm_up

_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]  # 4 MiB otherwise
_METHOD = "/bench.Echo/Call"


def serve(address: str, ready: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    warm_up()

    def echo(request: bytes, context: Any) -> bytes:
        return as_bytes(from_bytes(request)).tobytes()  # a message is bytes, and nothing else

    service, method = _METHOD.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.server(ThreadPoolExecutor(1), options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(address)
    server.start()
    ready.send(None)
    server.wait_for_termination()


class WorkerDied(Exception):
    pass


class Subject(Peer):
    title = "gRPC, Unix socket"
    requires = ("grpcio==1.85.1",)
    distribution = "grpcio"
    docs = "https://github.com/grpc/grpc/tree/master/examples/python/uds"
    use = "one unary method whose messages are the tensor's bytes: no protobuf in between; message size unlimited"
    deaths = (WorkerDied,)

    def setup(self, workers: int) -> None:
        import grpc

        self._grpc = grpc
        self._folder = tempfile.TemporaryDirectory(prefix="bench-grpc-")
        self._count = 0
        self._context = forkserver(__name__)
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> tuple[Any, Any, Any]:
        self._count += 1
        address = f"unix:{self._folder.name}/{self._count}"
        ready, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(address, theirs), daemon=True)
        process.start()
        theirs.close()
        ready.recv()  # a channel that connects too early waits for a second
        channel = self._grpc.insecure_channel(address, options=_OPTIONS)
        return process, channel, channel.unary_unary(_METHOD)

    def call(self, tensor: Any, worker: int = 0) -> Any:
        try:
            return from_bytes(self._workers[worker][2](as_bytes(tensor).tobytes()))
        except self._grpc.RpcError as error:
            raise WorkerDied(error.code()) from None

    def pid(self) -> int:
        pid: int = self._workers[0][0].pid
        return pid

    def restart(self) -> None:
        process, channel, _ = self._workers[0]
        channel.close()
        process.join()
        self._workers[0] = self._start()

    def close(self) -> None:
        for process, channel, _ in self._workers:
            channel.close()
            process.kill()
            process.join()
        self._folder.cleanup()
