"""ComfyUI's custom-node packs as executors: folders whose module has ``NODE_CLASS_MAPPINGS``.

::

    packs     which plugins of a folder are packs, before any of their code runs
    inputs    INPUT_TYPES → ports and params
    adapter   a pack's class → an executor's
    stand_in  what packs import of ComfyUI: ``folder_paths``, ``comfy.utils``, …; the modules are in ``shim``
    job       the job that is running, for modules that have no ``self.context``

``docs/comfyui.md`` is the users' side of it.
"""
