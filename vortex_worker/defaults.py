"""What holds where nobody says otherwise, for worker and supervisor alike. Imports nothing."""

MAX_FRAME = 16 << 20  # 16 MiB
HEARTBEAT_MS = 100
ZYGOTE_MESSAGE = 1 << 17  # 128 KiB: the most that a zygote reads at once
