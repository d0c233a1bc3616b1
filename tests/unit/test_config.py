"""A worker's configuration: what each variable takes, and how a bad one is named."""

import pytest

from vortex_worker.config import WorkerConfig
from vortex_worker.errors import ConfigError

GOOD = {"VORTEX_SOCKET": "/run/s", "VORTEX_SHM_NAME": "/arena"}


def test_reads_every_variable(tmp_path):
    config = WorkerConfig.from_env(
        {
            "VORTEX_SOCKET": "fd:7",
            "VORTEX_SHM_FD": "5",
            "VORTEX_SHM_SIZE": "4194304",
            "VORTEX_SHM_DATA": "2097152",
            "VORTEX_WORKER_ID": "w3",
            "VORTEX_LOG_LEVEL": "debug",
            "VORTEX_SECCOMP_POLICY": "strict",
            "VORTEX_CUSTOM_NODES": f"{tmp_path}:{tmp_path}",
            "VORTEX_MODELS": str(tmp_path),
            "VORTEX_MODULES": "cv2:scipy.ndimage",
            "VORTEX_DEVICE": "cpu",
            "VORTEX_MAX_FRAME": "65536",
            "VORTEX_HEARTBEAT_MS": "50",
            "VORTEX_THREADS": "2",
            "VORTEX_MEMORY_LIMIT": "1073741824",
            "VORTEX_ALLOW_UNSANDBOXED": "1",
        }
    )
    assert config.socket_fd == 7
    assert config.modules == ("cv2", "scipy.ndimage")
    assert (config.shm_size, config.shm_data) == (1 << 22, 1 << 21)
    assert config.custom_nodes == (str(tmp_path), str(tmp_path))
    assert (config.threads, config.memory_limit, config.allow_unsandboxed) == (2, 1 << 30, True)


def test_survives_the_trip_through_an_environment(tmp_path):
    config = WorkerConfig(
        socket="/s", shm_name="/a", shm_size=1 << 22, shm_data=1 << 21, worker_id="w", models=(str(tmp_path),)
    )
    assert WorkerConfig.from_env(config.to_env()) == config


def test_an_empty_value_is_an_unset_one():
    assert WorkerConfig.from_env({**GOOD, "VORTEX_DEVICE": ""}).device == "auto"


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("VORTEX_SOCKET", "fd:x", "fd:N"),
        ("VORTEX_SOCKET", "", "path"),
        ("VORTEX_SHM_NAME", "no-slash", "'/'"),
        ("VORTEX_SHM_NAME", "/a/b", "'/'"),
        ("VORTEX_SHM_SIZE", "-1", "bytes"),
        ("VORTEX_SHM_SIZE", "12GB", "bytes"),
        ("VORTEX_SHM_SIZE", "9" * 30, "bytes"),
        ("VORTEX_SHM_DATA", "-1", "bytes"),
        ("VORTEX_DEVICE", "gpu", "auto, cpu, cuda, cuda:N or mps"),
        ("VORTEX_DEVICE", "cuda:x", "cuda:N"),
        ("VORTEX_LOG_LEVEL", "loud", "debug or info"),
        ("VORTEX_CUSTOM_NODES", "relative/path", "absolute"),
        ("VORTEX_CUSTOM_NODES", "/no/such/folder", "exist"),
        ("VORTEX_MODELS", "/no/such/folder", "exist"),
        ("VORTEX_MODULES", "not a module", "names of Python modules"),
        ("VORTEX_MAX_FRAME", "0", "4096"),
        ("VORTEX_HEARTBEAT_MS", "0", "milliseconds"),
        ("VORTEX_THREADS", "٣", "threads"),
        ("VORTEX_ALLOW_UNSANDBOXED", "yes", "0 or 1"),
    ],
)
def test_a_bad_value_is_one_line_that_names_variable_value_and_what_it_takes(name, value, accepted):
    with pytest.raises(ConfigError) as caught:
        WorkerConfig.from_env({**GOOD, name: value})
    text = str(caught.value)
    assert "\n" not in text
    assert name in text
    assert accepted in text
    if value:
        assert value in text


def test_exactly_one_kind_of_shared_memory_must_be_given():
    with pytest.raises(ConfigError, match="neither"):
        WorkerConfig.from_env({"VORTEX_SOCKET": "/s"})
    with pytest.raises(ConfigError, match="both"):
        WorkerConfig.from_env({**GOOD, "VORTEX_SHM_FD": "3"})
