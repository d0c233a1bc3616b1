"""Says where the newest picture of a folder is, and shows it where there is a screen."""

import os
import sys
from pathlib import Path


def main() -> None:
    pictures = sorted(Path(sys.argv[1]).glob("*.png"), key=lambda path: path.stat().st_mtime)
    if not pictures:
        sys.exit(f"no picture in {sys.argv[1]}")
    print(f"the picture: {pictures[-1].resolve()}")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin":
        from PIL import Image

        Image.open(pictures[-1]).show()


if __name__ == "__main__":
    main()
