"""``python -m vortex_worker`` is the ``vortex-worker`` command."""

from vortex_worker.cli import main

if __name__ == "__main__":
    main()
