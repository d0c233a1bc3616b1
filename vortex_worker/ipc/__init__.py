"""Frames and messages: the conversation of a supervisor and a worker."""
