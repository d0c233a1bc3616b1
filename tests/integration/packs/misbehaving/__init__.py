"""A pack that does what the sandbox denies."""

import os
import socket
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import folder_paths
import torch
from PIL import Image


def write_image():
    path = os.path.join(folder_paths.get_output_directory(), "x.png")
    Image.new("RGB", (4, 4)).save(path)


def below_everything():
    import ctypes

    ctypes.CDLL(None).fork()  # no audit event: the kernel's to stop


DEEDS = {
    "network": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "url": lambda: urllib.request.urlopen("http://localhost:9/model.safetensors"),
    "subprocess": lambda: subprocess.run(["pip", "install", "anything"], check=True),
    "system": lambda: os.system("true"),
    "write": write_image,
    "makedirs": lambda: os.makedirs(os.path.join(folder_paths.get_temp_directory(), "cache")),
    "tempfile": lambda: tempfile.mkdtemp(),
    "torch_save": lambda: torch.save({}, "/tmp/x.pt"),
    "read": lambda: Path("/etc/passwd").read_text(),
    "pickle": lambda: __import__("comfy.utils").utils.load_torch_file("/nonexistent/model.ckpt"),
    "extension": lambda: __import__("_testcapi"),
    "kernel": below_everything,
    "comfy": lambda: __import__("comfy.sd"),
    "few": lambda: (),
    "none": lambda: 5,
}


class Misbehave:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"deed": (list(DEEDS),)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    def run(self, deed):
        return DEEDS[deed]()


class NoFunction:
    RETURN_TYPES = ()
    FUNCTION = "missing"

    @classmethod
    def INPUT_TYPES(cls):
        return {}


class BadInputs:
    RETURN_TYPES = ()
    FUNCTION = "INPUT_TYPES"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"x": "INT"}}


NODE_CLASS_MAPPINGS = {"PackMisbehave": Misbehave, "PackNoFunction": NoFunction, "PackBadInputs": BadInputs}
