"""Models people use, through diffusers and transformers (the extra ``vortex-worker[diffusion]``).

What each room is; imports run downwards::

    checkpoint     a file or folder → model, text encoder, VAE
    single_file    parts of a single file: their configuration read from the shapes, their names mapped
    separate       parts in files of their own
    folder         parts of a diffusers folder
    lora           low-rank additions, merged into a private copy
    controlnets    networks that add to a U-Net's
    unets, clips   networks of single files
    sd3            Stable Diffusion 3's network
    families       what shapes can't tell
    networks       diffusers' networks as `sampling.model` asks them
    text           text encoders with weighted prompts
    vae            pixels to latents and back, whole or in tiles
    t5             Stable Diffusion 3's third text encoder
    tokenizer      words to CLIP's tokens, and T5's
    parts          a module and its weights, which stay mapped from the file
    weights        safetensors files, checked
    names          names of their tensors
    prompt         ComfyUI's prompt syntax; plain Python

Nothing here is imported before a node needs it; nothing asks a hub; nothing is unpickled.
"""
