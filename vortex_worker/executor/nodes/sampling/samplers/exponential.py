"""What exponential integrators are made of: the phi functions, and integrals that have no closed form.

Hochbruck and Ostermann, "Exponential integrators" (2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

_NODES, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(24))


def phi(order: int, z: float) -> float:
    """phi_0(z) = e^z, phi_n+1(z) = (phi_n(z) − 1/n!) / z, to the last digits also near 0."""
    if abs(z) < 1:
        return sum(z**k / math.factorial(k + order) for k in range(18))
    value = math.exp(z)
    for n in range(order):
        value = (value - 1 / math.factorial(n)) / z
    return value


def integrate(function: Callable[[float], float], start: float, end: float) -> float:
    """The integral of a smooth function: Gauss and Legendre's rule of 24 points."""
    middle, half = (start + end) / 2, (end - start) / 2
    return half * sum(w * function(middle + half * x) for x, w in zip(_NODES, _WEIGHTS, strict=True))


def lagrange(nodes: Sequence[float], which: int, at: float) -> float:
    """The polynomial that is 1 at ``nodes[which]`` and 0 at the others."""
    value = 1.0
    for k, node in enumerate(nodes):
        if k != which:
            value *= (at - node) / (nodes[which] - node)
    return value
