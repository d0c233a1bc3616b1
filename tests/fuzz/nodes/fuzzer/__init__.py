"""Nodes for the fuzz tests: one that speaks to the supervisor by itself, one whose answers are known."""

from .speaker import Honest, Speak

__all__ = ["Honest", "Speak"]
