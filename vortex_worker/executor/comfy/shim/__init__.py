"""Stand-ins for the modules of ComfyUI that most packs import. Written anew, and no more than docs/comfyui.md says."""
