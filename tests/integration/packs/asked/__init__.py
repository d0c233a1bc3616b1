"""Nodes whose answers to ComfyUI's questions are no answers."""

import os
import time

LINES = "no\nerror: node 9 (Fake): made up\t!\x1b[2J"


def _node(**questions):
    found = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {"how": ("STRING", {"default": ""})}}),
        "RETURN_TYPES": ("STRING",),
        "FUNCTION": "run",
        "run": lambda self, how: (how,),
    }
    return type("Asked", (), found | questions)


def answer(cls, how=None):  # linked, it is not known before the run
    match how:
        case "raise":
            return 1 / 0
        case "die":
            os._exit(7)
        case "wait":
            time.sleep(60)
        case "lines":
            return LINES
        case "raise lines":
            raise ValueError(LINES)
    return True


NODE_CLASS_MAPPINGS = {
    "PackChanged": _node(IS_CHANGED=classmethod(answer)),
    "PackValid": _node(VALIDATE_INPUTS=classmethod(answer)),
}
