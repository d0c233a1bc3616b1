"""Stands in for ComfyUI's ``folder_paths``: where models are. Workers have no folder to write to.

The folders of models are those the fabric was given, laid out as ComfyUI's ``models``. The input folder is
``input`` in one of them if there is such a folder, else an empty one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vortex_worker.executor import model_files

supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
extension_mimetypes_cache: dict[str, str] = {}

#: ComfyUI's kinds of files. Another name is looked for under itself.
_FOLDERS = {
    "unet": ("unet", "diffusion_models"),
    "diffusion_models": ("unet", "diffusion_models"),
    "clip": ("text_encoders", "clip"),
    "text_encoders": ("text_encoders", "clip"),
}
_added: dict[str, list[str]] = {}
_NOWHERE = "/nonexistent"  # where writing is refused, and says so
_EMPTY = str(Path(__file__).parent / "input")

_roots = model_files.folders()
models_dir = _roots[0] if _roots else _NOWHERE
base_path = os.path.dirname(models_dir) if _roots else _NOWHERE
output_directory = os.path.join(_NOWHERE, "output")
temp_directory = os.path.join(_NOWHERE, "temp")
user_directory = os.path.join(_NOWHERE, "user")
input_directory = next((path for root in _roots if os.path.isdir(path := os.path.join(root, "input"))), _EMPTY)


class _FolderNames(dict[str, tuple[list[str], set[str]]]):
    """Kind → folders and extensions. Every kind is there, most of them empty."""

    def __missing__(self, kind: str) -> tuple[list[str], set[str]]:
        return get_folder_paths(kind), supported_pt_extensions

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, str)


folder_names_and_paths = _FolderNames()


def map_legacy(folder_name: str) -> str:
    return {"unet": "diffusion_models", "clip": "text_encoders"}.get(folder_name, folder_name)


def get_folder_paths(folder_name: str) -> list[str]:
    """The folders of a kind of file: those that exist."""
    below = _FOLDERS.get(folder_name, (folder_name,))
    standard = [os.path.join(root, sub) for root in model_files.folders() for sub in below]
    return [path for path in (*_added.get(folder_name, ()), *standard) if os.path.isdir(path)]


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    """Look there too. What the sandbox doesn't open stays closed."""
    folders = _added.setdefault(folder_name, [])
    if full_folder_path not in folders:
        folders.insert(0 if is_default else len(folders), full_folder_path)


def get_filename_list(folder_name: str) -> list[str]:
    """Names of a kind's files, relative to its folders, sorted."""
    extensions = folder_names_and_paths[folder_name][1]
    found = (file for folder in get_folder_paths(folder_name) for file in recursive_search(folder)[0])
    return sorted(set(filter_files_extensions(list(found), extensions)))


def get_full_path(folder_name: str, filename: str) -> str | None:
    """Where a file of ``get_filename_list`` is; None: nowhere."""
    relative = os.path.relpath(os.path.join("/", filename), "/")
    paths = (os.path.join(folder, relative) for folder in get_folder_paths(folder_name))
    return next((path for path in paths if os.path.isfile(path)), None)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    path = get_full_path(folder_name, filename)
    if path is None:
        raise FileNotFoundError(f"there is no {filename!r} in the {folder_name} folders of models")
    return path


def recursive_search(directory: str, excluded_dir_names: list[str] | None = None) -> tuple[list[str], dict[str, float]]:
    """Files below a folder, and the times its folders changed."""
    files: list[str] = []
    times: dict[str, float] = {}
    for folder, inner, names in os.walk(directory):
        inner[:] = [name for name in inner if name not in (excluded_dir_names or ())]
        times[folder] = os.path.getmtime(folder)
        files += [os.path.relpath(os.path.join(folder, name), directory) for name in names]
    return files, times


def filter_files_extensions(files: list[str], extensions: Any) -> list[str]:
    return sorted(file for file in files if not extensions or os.path.splitext(file)[1].lower() in extensions)


def get_input_directory() -> str:
    return input_directory


def get_output_directory() -> str:
    return output_directory


def get_temp_directory() -> str:
    return temp_directory


def get_user_directory() -> str:
    return user_directory


def get_directory_by_type(type_name: str) -> str | None:
    return {"input": input_directory, "output": output_directory, "temp": temp_directory}.get(type_name)


def annotated_filepath(name: str) -> tuple[str, str | None]:
    """``"cat.png [input]"`` → its name, and the folder of that kind."""
    for kind in ("output", "input", "temp"):
        if name.endswith(f"[{kind}]"):
            return name.removesuffix(f"[{kind}]").rstrip(), get_directory_by_type(kind)
    return name, None


def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
    name, folder = annotated_filepath(name)
    return os.path.join(folder or default_dir or input_directory, name)


def exists_annotated_filepath(name: str) -> bool:
    return os.path.exists(get_annotated_filepath(name))


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """ComfyUI's five: folder, name, counter, subfolder, prefix. Writing there is refused, and says so."""
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    return os.path.join(output_dir, subfolder), filename, 1, subfolder, filename_prefix
