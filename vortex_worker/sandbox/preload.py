"""What a worker imports before lockdown, because afterwards it can't.

Lockdown refuses to map a file as executable memory, so an extension module (``.so``) that was not loaded
before can't be loaded after: its import raises ImportError. Modules written in Python are not affected;
they are read like any file. Packages that a custom node needs and that have extension modules (``scipy``,
``cv2``) are named in the configuration and imported here too, while only trusted code has run.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import platform
import tempfile

from vortex_worker import _core
from vortex_worker.errors import ConfigError

__all__ = ["DIFFUSION", "PRELOAD", "preload", "preload_configured", "preload_diffusion"]

#: What usual nodes reach for and nobody has imported yet: modules with extension modules in them, and (for
#: the strict policy, which opens no files) those that loading a checkpoint imports on the way. torch, numpy
#: and the worker's own imports bring many more.
PRELOAD = (
    # the standard library
    "array",
    "bz2",
    "cmath",
    "csv",
    "ctypes",
    "datetime",
    "decimal",
    "fractions",
    "hashlib",
    "heapq",
    "json",
    "lzma",
    "math",
    "mmap",
    "pickle",
    "queue",
    "random",
    "resource",
    "select",
    "statistics",
    "struct",
    "unicodedata",
    "uuid",
    "xml.etree.ElementTree",
    "zlib",
    "zoneinfo",
    # text in older encodings, in file names and metadata
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_16",
    # numpy and torch load these at their first use
    "numpy.ctypeslib",
    "numpy.fft",
    "numpy.linalg",
    "numpy.random",
    "torch.utils.serialization",
    # Pillow loads each format and tool at its first use
    "PIL.Image",
    "PIL.ImageChops",
    "PIL.ImageCms",
    "PIL.ImageDraw",
    "PIL.ImageEnhance",
    "PIL.ImageFilter",
    "PIL.ImageFont",
    "PIL.ImageMath",
    "PIL.ImageMorph",
    "PIL.ImageOps",
    "PIL._avif",
    "PIL._imagingcms",
    "PIL._imagingft",
    "PIL._imagingmath",
    "PIL._imagingmorph",
    "PIL._webp",
    # checkpoints and columns
    "pyarrow",
    "safetensors.numpy",
    "safetensors.torch",
)


#: What nodes for diffusion models import, where the extra ``diffusion`` is installed. It brings tokenizers, SciPy and
#: more, compiled all of them, and takes seconds: for workers that have folders of models.
DIFFUSION = (
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "diffusers.loaders.single_file_utils",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.models.unets.unet_2d_condition",
)


@functools.cache
def preload_diffusion() -> list[str]:
    """Import :data:`DIFFUSION`, if the libraries are there. Returns names that can't be had."""
    if not all(importlib.util.find_spec(name) for name in ("diffusers", "transformers")):
        return list(DIFFUSION)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # there is no network to look for models in
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # Landlock holds already, and torch's compiler insists on a folder for its cache
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/")
    return _import_all(DIFFUSION)


@functools.cache  # a worker that was forked finds it done
def preload(extra: tuple[str, ...] = ()) -> list[str]:
    """Import the core, :data:`PRELOAD` and ``extra``, and Pillow's formats. Returns names that can't be had.

    What of :data:`PRELOAD` is missing depends on how Pillow was built; a missing name of ``extra`` is for the
    caller to report.
    """
    # The core's own modules, all of them: one that is first imported by a job would be refused like any other.
    core = [module.name for module in pkgutil.iter_modules(_core.__path__, _core.__name__ + ".")]
    missing = _import_all((*core, *PRELOAD, *extra))
    if "PIL.Image" not in missing:
        importlib.import_module("PIL.Image").init()
    platform.uname()  # which it remembers
    return missing


def preload_configured(names: tuple[str, ...]) -> None:
    """Import what the configuration names: installed packages that custom nodes need, trusted as torch is.

    Raises:
        ConfigError: one can't be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"modules is {name!r}: it takes modules that are installed beside torch ({error})"
            ) from None


def _import_all(names: tuple[str, ...]) -> list[str]:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing
