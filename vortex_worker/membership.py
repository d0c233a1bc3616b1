"""A worker's place in the fabric: arena, lease, slot, socket and heartbeat, and its handshakes."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import vortex_worker
from vortex_worker._core import lockdown
from vortex_worker._core.arena import Arena
from vortex_worker._core.framing import FrameSocket
from vortex_worker._core.handle import DTYPE_NAMES
from vortex_worker._core.heartbeat import Heartbeat
from vortex_worker._core.lease import LeaseAllocator
from vortex_worker._core.slots import SLOT_COUNT, STARTING, Slot
from vortex_worker.errors import ConfigError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.ipc.capabilities import pack_ops

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.device import Device
    from vortex_worker.executor.registry import Registry
    from vortex_worker.sandbox.stages import Descriptors, Report

MAX_HEARTBEAT_MS = 60_000
_DTYPES = [pb.DType.Name(number) for number in DTYPE_NAMES]
_ACK_TIMEOUT = 30.0  # s that a supervisor has to answer the handshake
_PREFAULT = 256 << 10  # 256 KiB of the lease, so that the first small outputs find their pages there
_LEISURE, _PORTIONS = 512 << 10, 15  # so much more, and how often, when there is nothing else to do: 7.5 MiB


class Membership:
    """What ``join`` gives. Lives as long as the worker."""

    def __init__(
        self, config: WorkerConfig, arena: Arena, socket: FrameSocket, encoder: protocol.Encoder, ack: pb.HandshakeAck
    ) -> None:
        self.config = config
        self.arena = arena
        self.socket = socket
        self.encoder = encoder
        self.slot = Slot(arena, ack.slot)
        self.allocator = LeaseAllocator(ack.lease_offset, ack.lease_size)
        self.device: Device | None = None
        self._heartbeat = Heartbeat(self.slot, socket.fileno(), ack.heartbeat_ms or config.heartbeat_ms)
        self.slot.register(os.getpid())
        self.slot.set_status(STARTING)
        # First Python's own fault handler, which writes the node's traceback to the log; then ours
        # before it, which notes in the slot where in the arena the fault was.
        faulthandler.enable(all_threads=False)
        lockdown.install_fault_handler(self.slot)
        self._heartbeat.start()

    def leave(self) -> None:
        """Stop the heartbeat: to it, the socket's closing at the end would look like the supervisor's."""
        self._heartbeat.stop()

    def prefault(self) -> None:
        """Take the first pages of the lease now, so that no job pays for it."""
        self.arena.prefault(self.arena.lease_offset, min(_PREFAULT, self.arena.lease_size))

    def leisure(self) -> list[Callable[[], object]]:
        """More of the same in small portions, each to be run where nobody waits."""
        start, end = self.arena.lease_offset, self.arena.lease_offset + self.arena.lease_size
        portions = [start + _PREFAULT + number * _LEISURE for number in range(_PORTIONS)]
        return [partial(self.arena.prefault, at, _LEISURE) for at in portions if at + _LEISURE <= end]

    def announce_locked(self, registry: Registry, report: Report, listener: int) -> None:
        """The execute filter is on. The last thing that trusted code says; hands over the filter's listener.

        Args:
            listener: its descriptor, which is closed here; -1: there is none.
        """
        self._handshake(
            registry,
            listener,
            phase=pb.Handshake.LOCKED,
            sandbox=pb.SandboxReport(
                policy=report.policy,
                layers=report.layers,
                landlock_abi=report.landlock_abi,
                filter_hash=report.filter_hash,
                enforced=report.enforced,
            ),
        )

    def announce_ready(self, registry: Registry) -> None:
        """Custom nodes are loaded: jobs may come."""
        self._handshake(
            registry,
            phase=pb.Handshake.READY,
            plugin_errors=[
                pb.PluginError(plugin=f.plugin, message=f.message[:4000], traceback=f.traceback[-16_000:])
                for f in registry.failures
            ],
        )

    def _handshake(self, registry: Registry, descriptor: int = -1, **fields: Any) -> None:
        message = pb.Handshake(
            protocol_version=protocol.PROTOCOL_VERSION,
            worker_id=self.config.worker_id,
            pid=os.getpid(),
            capabilities=self._capabilities(),
            **fields,
        )
        frame = self.encoder.handshake(message, pack_ops(registry.specs()))
        if descriptor < 0:
            self.socket.send(frame)
            return
        try:
            self.socket.send_with(frame, descriptor)
        finally:
            os.close(descriptor)

    def _capabilities(self) -> pb.Capabilities:
        assert self.device is not None
        device = pb.Device(
            type=self.device.type, index=self.device.index, name=self.device.name, memory=self.device.memory
        )
        return pb.Capabilities(
            devices=[device],
            dtypes=_DTYPES,
            torch_version=sys.modules["torch"].__version__,  # the device brought it in
            package_version=vortex_worker.__version__,
        )


def join(config: WorkerConfig, descriptors: Descriptors) -> Membership:
    """Map the arena, connect, shake hands, take the slot, start the heartbeat.

    Raises:
        ConfigError: the arena, the socket or the lease is not what it must be, or we were refused.
        ProtocolError: the supervisor's answer makes no sense.
    """
    arena = Arena.attach(descriptors.arena, descriptors.arena_readonly, config.shm_size, config.shm_data)
    socket = FrameSocket(_connect(config, descriptors), config.max_frame)
    socket.spin()  # asks how many CPUs there are, which is not for later
    encoder = protocol.Encoder()
    hello = pb.Handshake(
        protocol_version=protocol.PROTOCOL_VERSION,
        worker_id=config.worker_id,
        pid=os.getpid(),
        phase=pb.Handshake.JOINING,
        capabilities=pb.Capabilities(dtypes=_DTYPES, package_version=vortex_worker.__version__),
    )
    socket.send(encoder.encode(handshake=hello))
    try:
        body = socket.recv(timeout=_ACK_TIMEOUT)
    except TimeoutError:
        raise ProtocolError(f"the supervisor did not answer the handshake within {_ACK_TIMEOUT} s") from None
    if body is None:
        raise ProtocolError("the supervisor hung up instead of answering the handshake")
    packet = protocol.decode(body)
    if packet.WhichOneof("body") != "handshake_ack":
        raise ProtocolError(f"the handshake was answered by {packet.WhichOneof('body')}")
    ack = packet.handshake_ack
    if not ack.accepted:
        raise ConfigError(f"the supervisor refused this worker: {ack.reason}")
    if ack.slot >= SLOT_COUNT or ack.heartbeat_ms > MAX_HEARTBEAT_MS:
        raise ConfigError(
            f"the supervisor gave slot {ack.slot} and a heartbeat of {ack.heartbeat_ms} ms: they must be below "
            f"{SLOT_COUNT} and at most {MAX_HEARTBEAT_MS}"
        )
    arena.lease(ack.lease_offset, ack.lease_size)
    arena.seal_descriptors()
    return Membership(config, arena, socket, encoder, ack)


def _connect(config: WorkerConfig, descriptors: Descriptors) -> int:
    if descriptors.socket >= 0:
        return descriptors.socket
    import socket as sockets  # not for every start: an inherited socket needs none of it

    socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        socket.connect(config.socket)
    except (OSError, UnicodeError) as error:
        socket.close()  # left to the garbage collector, it would be asked for its name, by a call that no filter allows
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"VORTEX_SOCKET is {config.socket!r}, which can't be connected to: {why}") from None
    return socket.detach()
