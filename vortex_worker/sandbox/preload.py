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
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES

from vortex_worker import _core
from vortex_worker._core import process
from vortex_worker.errors import ConfigError

__all__ = [
    "COMPILED",
    "DIFFUSION",
    "MAPPED",
    "PLAIN",
    "preload",
    "preload_configured",
    "preload_diffusion",
    "preload_plain",
]

#: What usual nodes reach for and nobody has imported yet, with extension modules in it: before lockdown or never.
#: torch, numpy and the worker's own imports bring many more. Of packages that can be read later, only those modules.
COMPILED = (
    # the standard library
    "_decimal",
    "_elementtree",
    "_statistics",
    "array",
    "bz2",
    "cmath",
    "csv",
    "ctypes",
    "datetime",
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
    "struct",
    "unicodedata",
    "uuid",
    "zlib",
    # numpy loads these at their first use
    "numpy.fft",
    "numpy.linalg",
    "numpy.random",
    # and so does Pillow
    "PIL._avif",
    "PIL._imaging",
    "PIL._imagingcms",
    "PIL._imagingft",
    "PIL._imagingmath",
    "PIL._imagingmorph",
    "PIL._webp",
    # checkpoints
    "safetensors.numpy",
    "safetensors.torch",
)

#: Likewise, of packages that take long to import: their libraries are loaded, which is all that must be done before
#: lockdown. They are imported with :data:`PLAIN`.
MAPPED = (
    "_zoneinfo",
    "pyarrow.lib",  # columns
)

#: Modules of Python alone. Whoever may read files can import these at any time, so they are imported while nobody
#: waits; the strict policy opens no files, and what loading a checkpoint imports on the way must be there.
PLAIN = (
    "decimal",
    "fractions",
    "pyarrow",
    "statistics",
    "xml.etree.ElementTree",
    "zoneinfo",
    # text in older encodings, in file names and metadata
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_16",
    "numpy.ctypeslib",
    "torch.utils.serialization",
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
    # ours
    "vortex_worker.bridge.arrow",
    "vortex_worker.executor.nodes.bislerp",
    "vortex_worker.executor.nodes.sampling.guidance",
    "vortex_worker.executor.nodes.sampling.model",
    "vortex_worker.executor.nodes.sampling.noise",
    "vortex_worker.executor.nodes.sampling.samplers",
    "vortex_worker.executor.nodes.sampling.schedules",
)


#: What nodes for diffusion models import, where the extra ``diffusion`` is installed. It brings tokenizers, SciPy and
#: more, compiled all of them, and takes seconds: for workers that have folders of models.
DIFFUSION = (
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.t5.modeling_t5",
    "diffusers.loaders.single_file_utils",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.controlnets.controlnet",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.models.unets.unet_2d_condition",
)


@functools.cache
def preload_diffusion() -> list[str]:
    """Import :data:`DIFFUSION`, if the libraries are there. Returns names that can't be had."""
    if not all(importlib.util.find_spec(name) for name in ("diffusers", "transformers")):
        return list(DIFFUSION)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # there is no network to look for models in
    socket.has_ipv6 = False  # urllib3 tries whether there is, by a call that no filter here allows
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # Landlock holds already, and torch's compiler insists on a folder for its cache
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/")
    return _import_all(DIFFUSION)


@functools.cache  # a worker that was forked finds it done
def preload(extra: tuple[str, ...] = ()) -> list[str]:
    """Import the core, :data:`COMPILED` and ``extra``, load :data:`MAPPED`. Returns names that can't be had.

    What of :data:`COMPILED` is missing depends on how Pillow was built; a missing name of ``extra`` is for the
    caller to report.
    """
    # The core's own modules, all of them: one that is first imported by a job would be refused like any other.
    core = [module.name for module in pkgutil.iter_modules(_core.__path__, _core.__name__ + ".")]
    missing = _import_all((*core, *COMPILED, *extra))
    missing += [name for name in MAPPED if not _is_loaded(name)]
    platform.uname()  # which it remembers
    return missing


def preload_plain() -> list[Callable[[], object]]:
    """:data:`PLAIN` and Pillow's formats in portions of some milliseconds, each to be run where nobody waits."""
    formats = [f"PIL.{name}" for name in getattr(sys.modules.get("PIL"), "_plugins", ())]
    portions: list[Callable[[], object]] = [
        functools.partial(_import_all, (name,)) for name in (*PLAIN, *formats) if name not in sys.modules
    ]
    if formats:
        portions.append(_know_formats)
    return portions


def _know_formats() -> None:
    if "PIL.Image" in sys.modules:
        sys.modules["PIL.Image"].init()


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


def _is_loaded(name: str) -> bool:
    """Load an extension module's library, without importing the package that it is in. Whether it is loaded now."""
    package, _, module = name.rpartition(".")
    found = importlib.util.find_spec(package or module)
    if found is None:
        return False
    if not package:
        return process.load_library(os.fsencode(found.origin or ""))
    files = (
        os.path.join(folder, module + suffix)
        for folder in found.submodule_search_locations or ()
        for suffix in EXTENSION_SUFFIXES
    )
    return any(process.load_library(os.fsencode(file)) for file in files if os.path.exists(file))


def _import_all(names: tuple[str, ...]) -> list[str]:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing
