"""The arena seen from outside: its layout in plain Python, read from a descriptor without mapping it.

Workers and the supervisor use ``_core.arena`` and ``_core.slots``. This is for whoever only looks on
(``top``, a monitoring script), and it is the layout's second implementation, which tests hold
against the first one in C.
"""
