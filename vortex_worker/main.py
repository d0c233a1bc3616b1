"""A worker's life, from exec to exit: ``python -m vortex_worker.main``.

``live`` and ``take_part`` below are the whole order, and the order matters: each step may use only what the steps
before it left open, and nothing that somebody else wrote is looked at before ``lock_down``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vortex_worker.config import WorkerConfig
from vortex_worker.errors import ConfigError, ProtocolError
from vortex_worker.logging import Logger
from vortex_worker.sandbox.stages import Sandbox, SandboxError

if TYPE_CHECKING:
    from vortex_worker.executor.registry import Registry
    from vortex_worker.membership import Membership

#: Of ours, what is imported when it is first needed, which is after lockdown and before the first job.
JOB_MODULES = (
    "vortex_worker.engine",
    "vortex_worker.ipc.handler",
    "vortex_worker.executor.comfy.packs",
    "vortex_worker.sandbox.import_hook",
    "vortex_worker.sandbox.pack_guard",
)

EXIT_OK = 0
EXIT_BAD_CONFIG = 2
EXIT_FAULT = 3
EXIT_NO_SANDBOX = 4


def live(config: WorkerConfig, log: Logger) -> int:
    """One worker's life. Returns its exit status."""
    config = config.settled()
    sandbox = Sandbox(config)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # a node's print is a line of the log
    descriptors = sandbox.isolate()  # S0: descriptors, session, capabilities, rlimits, no_new_privs
    sandbox.bootstrap()  # S1: Landlock with its final rules, then the filter that lets Python and torch load

    from vortex_worker.membership import join

    membership = join(config, descriptors)  # arena mapped, connected, handshake, slot, heartbeat
    try:
        return take_part(config, sandbox, membership, log)
    finally:
        membership.leave()  # however it ends: the exit status is ours to choose


def take_part(config: WorkerConfig, sandbox: Sandbox, membership: Membership, log: Logger) -> int:
    """A worker's life as a member of a fabric. Returns its exit status."""
    registry = load_builtin(
        config, membership, opens_files=sandbox.opens_files
    )  # built-in nodes; thread pool, first kernels, device

    listener = sandbox.lock_down()  # S2: the filter jobs run under, on all threads; canary
    if not sandbox.report().enforced:
        log.warning("worker.unsandboxed", missing=sandbox.report().missing)
    elif sandbox.report().missing:
        log.info("worker.without", missing=sandbox.report().missing)
    membership.announce_locked(registry, sandbox.report(), listener)  # the kernel tells it what is denied
    sandbox.seal()  # no descriptor leaves any more, and no filter comes on top

    load_custom(config, registry, log)  # hostile from here
    membership.announce_ready(registry)
    return serve(membership, registry, log)


def load_builtin(config: WorkerConfig, membership: Membership, *, opens_files: bool) -> Registry:
    """Load built-in nodes and everything that jobs would otherwise load or start first."""
    from vortex_worker.executor import model_files
    from vortex_worker.executor.registry import Registry
    from vortex_worker.sandbox.preload import preload, preload_configured, preload_diffusion, preload_plain

    registry = Registry()
    registry.load_builtin()
    preload(JOB_MODULES)  # no extension module can be loaded after lockdown,
    if not opens_files:  # and under `strict` no module
        for load in preload_plain():
            load()
    preload_configured(config.modules)
    if config.models:
        model_files.use(config.models)
        preload_diffusion()

    from vortex_worker import device

    membership.device = device.choose(config.device)
    if config.wxorx:
        device.forbid_code()  # it could make none in a job
    if config.memory_limit:
        device.limit_memory(config.memory_limit)
    device.warm_up(membership.device, threads=config.threads)
    device.pin(membership.device, membership.arena.lease_address, membership.arena.lease_size)
    membership.prefault()
    return registry


def load_custom(config: WorkerConfig, registry: Registry, log: Logger) -> None:
    """Load installed plugins and the custom nodes' folders. One that fails is reported; others load."""
    from vortex_worker.executor.comfy.packs import pack_roots
    from vortex_worker.sandbox import import_hook, pack_guard

    packs = pack_roots(config.custom_nodes)
    import_hook.install(custom_roots=config.custom_nodes, but=packs)
    pack_guard.install(packs)  # those import as they please, and are told when they go too far
    registry.load_entry_points()
    for folder in config.custom_nodes:
        registry.load_folder(folder)
    for failure in registry.failures:
        log.info("plugin.failed", plugin=failure.plugin, message=failure.message, traceback=failure.traceback)


def serve(membership: Membership, registry: Registry, log: Logger) -> int:
    """Take jobs until the supervisor says Shutdown or hangs up; warm up further until the first comes."""
    from vortex_worker import device
    from vortex_worker.engine import Engine
    from vortex_worker.ipc.handler import Handler
    from vortex_worker.sandbox.preload import preload_plain

    assert membership.device is not None
    engine = Engine(membership.device, membership.arena, membership.allocator, registry, log)
    # A job of our own first: a real one then finds code and memory there. One that is here already takes its place.
    leisure = [engine.rehearse, *membership.leisure(), *device.first_kernels(), *preload_plain()]
    try:
        return Handler(membership.socket, membership.slot, engine, log, membership.encoder).serve(leisure)
    finally:
        engine.close()


def main() -> int:
    """Configure from the environment, and run. Returns the exit status."""
    try:
        config = WorkerConfig.from_env()
    except ConfigError as error:
        print(f"vortex-worker: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    return run(config)


def run(config: WorkerConfig) -> int:
    """Live, and turn every refusal into one readable line. Returns the exit status."""
    log = Logger(config.worker_id, config.log_level)
    try:
        return live(config, log)
    except ConfigError as error:
        log.error("worker.config", message=str(error))
        return EXIT_BAD_CONFIG
    except ProtocolError as error:
        log.error("worker.fault", message=error.message)
        return EXIT_FAULT
    except SandboxError as error:
        log.error("worker.sandbox", message=str(error))
        return EXIT_NO_SANDBOX
    except ConnectionError as error:
        log.info("worker.hangup", message=str(error))
        return EXIT_OK


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Not sys.exit: interpreter teardown would run whatever a node left behind, for nobody's good.
    os._exit(status)
