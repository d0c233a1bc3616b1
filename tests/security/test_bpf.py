"""The compiled programs decide as the policies say: each number and architecture, arguments bit by bit."""

from __future__ import annotations

import errno
import os
import platform
import random

import pytest

from vortex_worker.sandbox import bpf, seccomp
from vortex_worker.sandbox.policy import SELF_PID, Policy, Rule
from vortex_worker.sandbox.policy_file import CONSTANTS

pytestmark = pytest.mark.skipif(not seccomp.available(), reason="this build has no libseccomp")

NAMES = ("bootstrap", "execute", "strict", "cuda", "cuda_start")
PID = 4242
NUMBERS = range(1024)  # today's calls end below 500; the rest is what later kernels may add

#: Nothing may ever allow these, with any arguments, in any policy.
_NEVER = """
execve execveat fork vfork kill tkill rt_sigqueueinfo rt_tgsigqueueinfo ptrace process_vm_readv
process_vm_writev process_madvise pidfd_open pidfd_getfd pidfd_send_signal bind listen accept accept4
sendmmsg recvmmsg memfd_create memfd_secret userfaultfd io_uring_setup io_uring_enter io_uring_register
bpf perf_event_open keyctl add_key request_key mount umount2 unshare setns chroot pivot_root personality
setuid setgid setresuid setresgid setreuid capset reboot init_module finit_module kexec_load swapon
syslog acct quotactl setrlimit sethostname settimeofday open_by_handle_at name_to_handle_at
fanotify_init inotify_init1 signalfd4 timerfd_create mq_open shmget semget msgget
landlock_create_ruleset landlock_restrict_self splice tee vmsplice sendfile copy_file_range pwrite64
migrate_pages move_pages set_mempolicy modify_ldt iopl ioperm kcmp close_range fsopen move_mount
open_tree
"""
NEVER = _NEVER.split()


@pytest.fixture(scope="module", params=NAMES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return seccomp.load_policy(request.param)


@pytest.fixture(scope="module")
def machine(policy: Policy) -> bpf.Machine:
    return bpf.Machine(seccomp.compile_policy(policy).code)


def by_number(policy: Policy) -> dict[int, str]:
    numbers = {seccomp.number_of(call): call for call in policy.rules}
    return {number: call for number, call in numbers.items() if number is not None and number >= 0}


def witness(rule: Rule, noise: random.Random) -> list[int]:
    """Arguments that satisfy a rule; every bit that it doesn't look at is arbitrary."""
    args = [noise.getrandbits(64) for _ in range(6)]
    for condition in rule.conditions:
        args[condition.arg] = args[condition.arg] & ~condition.mask | condition.value
    return args


def test_every_number(policy: Policy, machine: bpf.Machine) -> None:
    names = by_number(policy)
    noise = random.Random(1)
    assert len(names) > 60  # aarch64 has fewer
    for number in NUMBERS:
        for args in ((0,) * 6, tuple(noise.getrandbits(64) for _ in range(6)), (bpf.X32_BIT - 1,) * 6):
            call = names.get(number)
            expected = ("kill_process", 0) if call is None else policy.decide(call, args)
            assert machine.decide(number, args) == expected, (number, call, args)


def test_arguments_bit_by_bit(policy: Policy, machine: bpf.Machine) -> None:
    """From arguments that satisfy a rule, every single change of a bit that it looks at."""
    noise = random.Random(2)
    tried = 0
    for number, call in by_number(policy).items():
        for rule in policy.rules[call]:
            args = witness(rule, noise)
            assert machine.decide(number, tuple(args)) == (rule.action, rule.error), rule
            for condition in rule.conditions:
                for bit in range(64):
                    changed = list(args)
                    changed[condition.arg] ^= 1 << bit
                    expected = policy.decide(call, tuple(changed))
                    assert machine.decide(number, tuple(changed)) == expected, (rule, bit)
                    tried += 1
    assert tried > 1000


def test_arguments_at_random(policy: Policy, machine: bpf.Machine) -> None:
    noise = random.Random(3)
    small = [*range(9), 0x22, 0x32, 0o2000000, 0o10000000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1, SELF_PID]
    for number, call in by_number(policy).items():
        if any(rule.conditions for rule in policy.rules[call]):
            for _ in range(300):
                args = tuple(noise.choice(small) for _ in range(6))
                assert machine.decide(number, args) == policy.decide(call, args), (call, args)


def test_other_architectures(machine: bpf.Machine) -> None:
    foreign = {bpf.X86_64, bpf.I386, bpf.AARCH64, bpf.ARM, 0} - {bpf.NATIVE}
    for number in NUMBERS:
        for arch in foreign:
            assert machine.decide(number, arch=arch) == ("kill_process", 0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is an ABI of x86-64")
def test_x32(machine: bpf.Machine) -> None:
    """x32 shares the architecture's number and sets a bit in the call's."""
    for number in NUMBERS:
        assert machine.decide(bpf.X32_BIT | number) == ("kill_process", 0)


def test_never_allowed(policy: Policy, machine: bpf.Machine) -> None:
    noise = random.Random(4)
    found = 0
    starts_cuda = {"bind", "dup", "listen", "setsockopt"}  # until lockdown, and with a card only
    for call in set(NEVER) - (starts_cuda if policy.name == "cuda_start" else set()):
        number = seccomp.number_of(call)
        assert number is not None, f"{call} is misspelt here"
        if number >= 0:
            found += 1
            for args in ((0,) * 6, tuple(noise.getrandbits(64) for _ in range(6))):
                assert machine.decide(number, args) == ("kill_process", 0), call
    assert found > 60


@pytest.mark.parametrize(("narrow", "wide"), [("execute", "bootstrap"), ("strict", "bootstrap")])
def test_wider_policy_allows_all_of_the_narrower(narrow: str, wide: str) -> None:
    """Filters add up, so what bootstrap kills stays killed: the rest it must allow, or refuse softly."""
    inner = seccomp.load_policy(narrow)
    outer = seccomp.load_policy(wide).including(inner)  # as a worker installs it
    noise = random.Random(5)
    for rules in inner.rules.values():
        for rule in rules:
            for _ in range(20):
                action, _ = outer.decide(rule.call, tuple(witness(rule, noise)))
                assert action == "allow" if rule.action == "allow" else action != "kill_process", rule


@pytest.mark.parametrize("name", ["execute", "strict"])
def test_bootstrap_including(name: str) -> None:
    """The bootstrap filter that a worker really installs: as wide as both, and still free of ambiguity."""
    bootstrap, inner = seccomp.load_policy("bootstrap"), seccomp.load_policy(name)
    both = bootstrap.including(inner)
    machine = bpf.Machine(seccomp.compile_policy(both).code)
    noise = random.Random(6)
    for policy in (bootstrap, inner):
        for number, call in by_number(policy).items():
            for rule in policy.rules[call]:
                args = tuple(witness(rule, noise))
                assert machine.decide(number, args) == both.decide(call, args)
                if rule.action == "allow":
                    assert machine.decide(number, args) == ("allow", 0), rule
    assert set(both.rules) == {*bootstrap.rules, *inner.rules}


def test_own_policy_over_bootstrap(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "mine.toml")
    with open(path, "w") as file:
        file.write(
            'extends = "execute"\n[extra]\ngetpgid = "a need of its own"\n'
            '[[extra.ioctl]]\nreason = "a device"\neq = [{ index = 1, value = 0xC0DE }]\n'
            '[[extra.ioctl]]\nreason = "isatty"\nerrno = "ENOTTY"\neq = [{ index = 1, value = "TCGETS" }]\n'
            '[default]\naction = "kill_process"\nreason = "as ever"\n'
        )
    mine = seccomp.load_policy(path)
    bootstrap = seccomp.load_policy("bootstrap")
    for policy, getpgid, device in (
        (mine, LIVE, LIVE),
        (bootstrap.including(mine), LIVE, LIVE),
        (bootstrap, DEAD, ("errno", errno.ENOTTY)),
    ):
        machine = bpf.Machine(seccomp.compile_policy(policy).code)
        assert call(machine, "getpgid", 0) == getpgid
        assert call(machine, "ioctl", 3, 0xC0DE) == device
        assert call(machine, "ioctl", 3, 0x5401) == ("errno", errno.ENOTTY)


def call(machine: bpf.Machine, name: str, *args: int) -> tuple[str, int]:
    number = seccomp.number_of(name)
    assert number is not None
    return machine.decide(number, (*(a & (1 << 64) - 1 for a in args), *(0,) * (6 - len(args))))


@pytest.fixture(scope="module")
def execute() -> bpf.Machine:
    return bpf.Machine(seccomp.compile_policy(seccomp.load_policy("execute"), pid=PID).code)


@pytest.fixture(scope="module")
def bootstrap() -> bpf.Machine:
    return bpf.Machine(seccomp.compile_policy(seccomp.load_policy("bootstrap"), pid=PID).code)


DENIED = ("errno", errno.EACCES)
DEAD = ("kill_process", 0)
LIVE = ("allow", 0)
AT_FDCWD = -100 & 0xFFFF_FFFF
GARBAGE = 0xDEAD_BEEF_0000_0000  # in the half of a register that the kernel does not read for an int


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (os.O_RDONLY, LIVE),
        (os.O_RDONLY | os.O_CLOEXEC, LIVE),
        (os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW, LIVE),
        (GARBAGE | os.O_RDONLY, LIVE),
        (os.O_WRONLY, DENIED),
        (os.O_RDWR, DENIED),
        (os.O_WRONLY | os.O_RDWR, DENIED),
        (os.O_RDONLY | os.O_CREAT, DENIED),
        (os.O_RDONLY | os.O_TRUNC, DENIED),
        (os.O_RDONLY | os.O_APPEND, DENIED),
        (os.O_PATH, DENIED),
        (os.O_TMPFILE | os.O_RDWR, DENIED),
        (GARBAGE | os.O_WRONLY, DENIED),
        (GARBAGE | os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, DENIED),
        (os.O_TMPFILE, DEAD),  # meaningless without a way to write
        (os.O_ASYNC, DEAD),
        (os.O_SYNC, DEAD),
        (0x8000_0000, DEAD),
        (0x4000_0000 | os.O_CLOEXEC, DEAD),
    ],
)
def test_open(execute: bpf.Machine, bootstrap: bpf.Machine, flags: int, expected: tuple[str, int]) -> None:
    for machine in (execute, bootstrap):
        assert call(machine, "openat", AT_FDCWD, 0x1234, flags) == expected
        if platform.machine() == "x86_64":
            assert call(machine, "open", 0x1234, flags) == (DEAD if machine is execute else DENIED)  # of old


@pytest.mark.parametrize(
    ("prot", "flags", "later", "before"),
    [
        (3, 0x22, LIVE, LIVE),  # malloc
        (0, 0x4022, LIVE, LIVE),  # a reserve
        (7, 0x22, LIVE, LIVE),  # libffi's callbacks
        (3, 0x20022, LIVE, LIVE),  # a stack
        (1, 0x02, LIVE, LIVE),  # a checkpoint
        (3, 0x02, LIVE, LIVE),  # the same, copied on write
        (5, 0x802, DENIED, LIVE),  # an extension module's code
        (4, 0x02, DENIED, LIVE),
        (1, 0x01, DENIED, LIVE),  # a file, shared
        (3, 0x01, DENIED, LIVE),  # the arena
        (3, 0x03, DENIED, LIVE),  # MAP_SHARED_VALIDATE
        (3, 0x21, DENIED, LIVE),  # shared memory of no file
        (3, 0x28, ("errno", errno.EINVAL), LIVE),  # MAP_DROPPABLE: of newer C libraries, which do without later
    ],
)
def test_mmap(
    execute: bpf.Machine,
    bootstrap: bpf.Machine,
    prot: int,
    flags: int,
    later: tuple[str, int],
    before: tuple[str, int],
) -> None:
    assert call(execute, "mmap", 0, 4096, prot, flags, 3, 0) == later
    assert call(bootstrap, "mmap", 0, 4096, prot, flags, 3, 0) == before


THREAD = 0
for _name, _bit in CONSTANTS.items():
    if _name.startswith("CLONE_"):  # the policies' list has just those of a thread
        THREAD |= _bit


@pytest.mark.parametrize("bit", range(32))
def test_clone_takes_exactly_the_flags_of_a_thread(execute: bpf.Machine, bootstrap: bpf.Machine, bit: int) -> None:
    assert THREAD == 0x3D0F00
    for machine in (execute, bootstrap):
        assert call(machine, "clone", THREAD) == LIVE
        assert call(machine, "clone", THREAD ^ 1 << bit) == DEAD
        assert call(machine, "clone", 17) == DEAD  # SIGCHLD: fork


def test_signals_go_to_this_process_only(execute: bpf.Machine) -> None:
    assert call(execute, "tgkill", PID, PID + 1, 6) == LIVE
    assert call(execute, "tgkill", GARBAGE | PID, PID, 6) == LIVE
    for other in (PID + 1, 0, 1, -1, SELF_PID):
        assert call(execute, "tgkill", other, PID, 6) == DEAD
    for fault in (4, 7, 8, 11):  # what the kernel gives a thread for its own fault
        assert call(execute, "tgkill", PID, PID, fault) == ("errno", errno.EPERM)
        assert call(execute, "tgkill", PID + 1, PID, fault) == DEAD
    for signal in (0, 1, 2, 9, 10, 12, 15, 19, 31, 64):  # none that could take a thread out of a denied call
        assert call(execute, "tgkill", PID, PID, signal) == DEAD


def test_a_program_that_was_not_filled_in_matches_no_process() -> None:
    program = seccomp.compile_policy(seccomp.load_policy("execute"))
    machine = bpf.Machine(program.code)
    for pid in (1, PID, (1 << 22) - 1):
        assert call(machine, "tgkill", pid, pid, 6) == DEAD
    filled = program.for_pid(PID)
    assert len(filled.code) == len(program.code)
    assert sum(a != b for a, b in zip(program.code, filled.code, strict=True)) <= 4
    with pytest.raises(ValueError, match="not a process"):
        program.for_pid(0)


def test_sockets(execute: bpf.Machine, bootstrap: bpf.Machine) -> None:
    unix, stream, cloexec = 1, 1, 0o2000000
    assert call(bootstrap, "socket", unix, stream | cloexec, 0) == LIVE
    assert call(bootstrap, "socket", GARBAGE | unix, GARBAGE | stream, 0) == LIVE
    for family, kind, protocol in [
        (2, 1, 0),
        (10, 1, 0),
        (16, 3, 0),
        (17, 3, 0),
        (1, 2, 0),
        (1, 3, 0),
        (1, 1, 1),
    ]:
        assert call(bootstrap, "socket", family, kind, protocol) == DEAD
        assert call(execute, "socket", family, kind, protocol) == DEAD
    assert call(execute, "socket", unix, stream | cloexec, 0) == DENIED  # who a user is, asked of a daemon
    assert call(execute, "sendto", 3, 1, 1, 0, 0, 0) == LIVE
    assert call(execute, "sendto", 3, 1, 1, 0, 0x7FFF_0000, 0) == DEAD
    assert call(execute, "sendto", 3, 1, 1, 0, 1 << 63, 0) == DEAD  # a pointer has 64 bits
    assert call(execute, "recvfrom", 3, 1, 1, 0, 1 << 32, 0) == DEAD
    assert call(bootstrap, "connect", 3, 1, 1) == LIVE
    assert call(execute, "connect", 3, 1, 1) == DEAD


def test_terminal_injection(execute: bpf.Machine, bootstrap: bpf.Machine) -> None:
    tiocsti = 0x5412
    for word in (tiocsti, GARBAGE | tiocsti, 1 << 32 | tiocsti):
        assert call(execute, "ioctl", 0, word) == ("errno", errno.ENOTTY)
        assert call(bootstrap, "ioctl", 0, word) == ("errno", errno.ENOTTY)


def test_limits_stay(execute: bpf.Machine) -> None:
    for args in ((0, 7, 0, 0x1000), (0, 7, 0x1000, 0), (0, 7, 1 << 40, 0), (1, 7, 0, 0x1000)):
        assert call(execute, "prlimit64", *args) == ("errno", errno.EPERM)


def test_soft_answers(execute: bpf.Machine) -> None:
    assert call(execute, "clone3", 0x1000, 88) == ("errno", errno.ENOSYS)
    assert call(execute, "mremap", 0x1000, 4096, 8192, 1) == ("errno", errno.ENOMEM)
    assert call(execute, "mprotect", 0x1000, 4096, 7) == LIVE
    assert call(execute, "mprotect", 0x1000, 4096, 5) == DENIED
    assert call(execute, "mprotect", 0x1000, 4096, 0x0100_0007) == DEAD  # PROT_GROWSDOWN


def test_prctl(execute: bpf.Machine, bootstrap: bpf.Machine) -> None:
    assert call(execute, "prctl", 15, 0x1000) == ("errno", errno.EPERM)
    assert call(bootstrap, "prctl", 15, 0x1000) == LIVE
    for option in (
        4,
        22,
        24,
        36,
        38,
        47,
        0x59616D61,
    ):  # dumpable, seccomp, capabilities, subreaper, …, ptracer
        assert call(execute, "prctl", option, 1) == DEAD
    assert call(bootstrap, "prctl", 39) == LIVE  # whether no_new_privs holds
    assert call(bootstrap, "prctl", 38, 1) == DEAD  # isolate has set it
    assert call(bootstrap, "prctl", 4, 1) == DEAD


def test_second_filter(execute: bpf.Machine, bootstrap: bpf.Machine) -> None:
    assert call(bootstrap, "seccomp", 1, 1, 0x1000) == LIVE
    assert call(bootstrap, "seccomp", 0, 0, 0) == DEAD  # the strict mode of old
    assert call(execute, "seccomp", 1, 0, 0x1000) == DEAD


def test_notify_asks_the_listener(execute: bpf.Machine) -> None:
    policy = seccomp.load_policy("execute")
    machine = bpf.Machine(seccomp.compile_policy(policy, pid=PID, notify=True).code)
    for number, name in enumerate(("read", "write")):
        if platform.machine() == "x86_64":
            assert machine.decide(number) == LIVE, name
    assert call(machine, "execve", 0x1000) == ("notify", 0)
    assert call(machine, "clone", 17) == ("notify", 0)
    assert call(machine, "openat", AT_FDCWD, 0, os.O_RDWR) == DENIED
    assert machine.decide(0, arch=bpf.I386) == ("notify", 0)


def test_hash_is_of_the_policy_not_of_the_process() -> None:
    policy = seccomp.load_policy("execute")
    first, second = seccomp.compile_policy(policy), seccomp.compile_policy(policy)
    assert first.sha256 == second.sha256
    assert len(first.sha256) == 64
    assert seccomp.compile_policy(seccomp.load_policy("strict")).sha256 != first.sha256
