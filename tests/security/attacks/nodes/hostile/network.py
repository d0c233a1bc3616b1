"""The network, other services of the machine, descriptors by socket, and terminals."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from vortex_worker.ipc import control_pb2 as pb

from .registry import FILTER, ISOLATION, LANDLOCK, VIEW, attack
from .tools import libc, module, os, syscall, vector

_ABI_TCP, _ABI_SCOPE = 4, 6
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK, AF_ALG = 1, 2, 10, 16, 17, 40, 38
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5


def inet(port: int) -> bytes:
    """struct sockaddr_in of the loopback."""
    return struct.pack("=H", AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1")


def inet6(port: int) -> bytes:
    return struct.pack("=H", AF_INET6) + struct.pack("!HI16sI", port, 0, b"\0" * 15 + b"\1", 0)


def unix(path: str) -> bytes:
    return struct.pack("=H", AF_UNIX) + (os.fsencode(path) + b"\0" if path[:1] != "@" else b"\0" + path[1:].encode())


def connect_and_send(family: int, kind: int, address: bytes) -> None:
    descriptor = syscall("socket", family, kind, 0)
    syscall("connect", descriptor, address, len(address))
    os.write(descriptor, b"hello")


@attack("received", FILTER, LANDLOCK, abi=_ABI_TCP)
def tcp(world: Any) -> None:
    """A TCP connection."""
    connect_and_send(AF_INET, STREAM, inet(world.tcp))


@attack("received", FILTER, LANDLOCK, abi=_ABI_TCP)
def tcp_by_python(world: Any) -> None:
    """The same by the `socket` module."""
    with module("socket").create_connection(("127.0.0.1", world.tcp)) as connection:
        connection.sendall(b"hello")


@attack("received", FILTER)
def tcp_fast_open(world: Any) -> None:
    """A TCP connection without `connect`: `sendto` with MSG_FASTOPEN."""
    descriptor = syscall("socket", AF_INET, STREAM, 0)
    address = inet(world.tcp)
    syscall("sendto", descriptor, b"hello", 5, 0x2000_0000, address, len(address))


@attack("received", FILTER)
def udp(world: Any) -> None:
    """A UDP datagram, which Landlock does not cover."""
    descriptor = syscall("socket", AF_INET, DGRAM, 0)
    address = inet(world.udp)
    syscall("sendto", descriptor, b"hello", 5, 0, address, len(address))


@attack("received", FILTER)
def udp_by_sendmmsg(world: Any) -> None:
    """The same by `sendmmsg`."""
    descriptor = syscall("socket", AF_INET, DGRAM, 0)
    address, data = ctypes.create_string_buffer(inet(world.udp)), ctypes.create_string_buffer(b"hello")
    part = ctypes.create_string_buffer(vector(ctypes.addressof(data), 5))
    header = struct.pack("=QIxxxxQQQQIxxxxI4x", ctypes.addressof(address), 16, ctypes.addressof(part), 1, 0, 0, 0, 0)
    syscall("sendmmsg", descriptor, header, 1, 0)


@attack("received", FILTER)
def a_question_to_a_name_server(world: Any) -> None:
    """Data in the name that is looked up. (Here: the datagram that a resolver would send.)"""
    query = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\x07secrets\x07example\0" + struct.pack("!HH", 1, 1)
    descriptor = syscall("socket", AF_INET, DGRAM, 0)
    address = inet(world.udp)
    syscall("connect", descriptor, address, len(address))
    os.write(descriptor, query)


@attack("descriptors", FILTER, LANDLOCK, abi=_ABI_TCP)
def listen(world: Any) -> None:
    """Listen on a TCP port."""
    descriptor = syscall("socket", AF_INET, STREAM, 0)
    try:
        syscall("bind", descriptor, inet(0), 16)
        syscall("listen", descriptor, 1)
    except OSError:
        os.close(descriptor)
        raise


@attack("descriptors", FILTER)
def udp6(world: Any) -> None:
    """A UDP socket of IPv6."""
    syscall("socket", AF_INET6, DGRAM, 0)


@attack("descriptors", FILTER)
def netlink(world: Any) -> None:
    """A netlink socket: the network's configuration, and a large piece of kernel."""
    descriptor = syscall("socket", AF_NETLINK, RAW, 0)
    syscall("bind", descriptor, struct.pack("=HHII", AF_NETLINK, 0, 0, 0), 12)


@attack("descriptors", FILTER)
def vsock(world: Any) -> None:
    """A vsock socket: from a virtual machine to its host."""
    syscall("socket", AF_VSOCK, STREAM, 0)


@attack("descriptors", FILTER)
def kernel_crypto(world: Any) -> None:
    """An AF_ALG socket: the kernel's ciphers, known for their holes."""
    syscall("socket", AF_ALG, SEQPACKET, 0)


@attack("descriptors", FILTER, ISOLATION)
def packets(world: Any) -> None:
    """A packet socket: everybody's traffic."""
    syscall("socket", AF_PACKET, RAW, 0x0300)


@attack("descriptors", FILTER, ISOLATION)
def raw_ip(world: Any) -> None:
    """A raw IP socket."""
    syscall("socket", AF_INET, RAW, 1)


@attack("descriptors", FILTER)
def family_with_garbage_above(world: Any) -> None:
    """`socket` with AF_UNIX in the half that a hasty filter looks at first, and garbage in the other."""
    syscall("socket", 1 << 32 | AF_UNIX, 1 << 32 | DGRAM, 0)


# Unix sockets


@attack("received", FILTER, VIEW)
def unix_path(world: Any) -> None:
    """A Unix socket with a path, such as a container engine's: Landlock before its newest ABI does not cover it."""
    connect_and_send(AF_UNIX, STREAM, unix(f"{world.outside}/stream"))


@attack("received", FILTER, VIEW)
def unix_datagram(world: Any) -> None:
    """A Unix datagram socket, such as the system's log."""
    connect_and_send(AF_UNIX, DGRAM, unix(f"{world.outside}/datagram"))


@attack("received", FILTER, LANDLOCK, abi=_ABI_SCOPE)
def unix_abstract(world: Any) -> None:
    """An abstract Unix socket, such as a desktop's bus: it has no path to be closed."""
    connect_and_send(AF_UNIX, STREAM, unix(f"@{world.abstract}"))


@attack("files", FILTER, LANDLOCK)
def unix_listen(world: Any) -> None:
    """Listen on a Unix socket, in a folder that may be read."""
    descriptor = syscall("socket", AF_UNIX, STREAM, 0)
    address = unix(f"{world.models}/socket")
    syscall("bind", descriptor, address, len(address))


@attack("descriptors", FILTER)
def socket_pair(world: Any) -> None:
    """`socketpair`."""
    pair = ctypes.create_string_buffer(8)
    syscall("socketpair", AF_UNIX, STREAM, 0, pair)


@attack("received", FILTER, VIEW)
def reconnect_the_control_socket(world: Any) -> None:
    """Dissolve the control socket's connection, and connect it elsewhere."""
    kind = module("socket").socket(fileno=os.dup(world.socket))
    try:
        kind.connect(f"{world.outside}/stream")
    except OSError:
        connect_and_send(AF_UNIX, STREAM, unix(f"{world.outside}/stream"))


@attack("claim", FILTER)
def descriptors_for_the_supervisor(world: Any) -> bool:
    """A flood of descriptors by SCM_RIGHTS, beside an ordinary frame: 200 of them, ten times over. (The supervisor
    takes none in any case: it reads with `recv`.)
    """
    frame = pb.ControlPacket(pong=pb.Pong(nonce=1)).SerializeToString()
    frame = len(frame).to_bytes(4, "little") + frame
    end = module("socket").socket(fileno=world.socket)
    sent = 0
    try:
        while sent < 10:
            module("socket").send_fds(end, [frame], [2] * 200)
            sent += 1
    except OSError:
        if not sent:
            raise
    finally:
        end.detach()
    return True


@attack("claim", FILTER)
def take_descriptors(world: Any) -> bool:
    """`recvmsg` on the control socket, in the hope of descriptors."""
    part = ctypes.create_string_buffer(vector(ctypes.addressof(ctypes.create_string_buffer(8)), 8))
    control = ctypes.create_string_buffer(256)
    header = struct.pack("=QIxxxxQQQQIxxxx", 0, 0, ctypes.addressof(part), 1, ctypes.addressof(control), 256, 0)
    try:
        syscall("recvmsg", world.socket, header, 0x40)
    except BlockingIOError:
        pass  # nothing there: the call itself was carried out
    return True


@attack("claim", FILTER)
def options_of_the_control_socket(world: Any) -> bool:
    """`setsockopt` on the control socket."""
    return syscall("setsockopt", world.socket, 1, 7, struct.pack("=i", 4096), 4) == 0


# Terminals


@attack("terminal", FILTER, LANDLOCK)
def type_into_the_terminal(world: Any) -> None:
    """TIOCSTI: keys that nobody pressed, in the terminal that the supervisor runs in."""
    _type(world, 0x5412)


@attack("terminal", FILTER, LANDLOCK)
def type_with_high_bits(world: Any) -> None:
    """The same with bits set in the half of the request that the kernel ignores (CVE-2019-10063)."""
    _type(world, 0x1_0000_5412)


def _type(world: Any, request: int) -> None:
    libc.setsid()
    terminal = os.open(world.terminal, os.O_RDONLY)
    for key in b"rm -rf":
        syscall("ioctl", terminal, request, bytes([key]))


@attack("claim", FILTER)
def control_of_a_descriptor(world: Any) -> bool:
    """FIONBIO by `ioctl` on the log's pipe: it would block, or not, for others, too."""
    value = struct.pack("=i", 0)
    return syscall("ioctl", 2, 0x5421, value) == 0
