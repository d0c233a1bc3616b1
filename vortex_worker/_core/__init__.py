"""The compiled core: Cython over csrc/, and libseccomp through cffi. Imports only ``errors``."""
