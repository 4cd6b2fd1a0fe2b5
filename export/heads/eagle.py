"""EAGLE-1 (arXiv 2401.15077): one layer guesses the target's next last state, which the target's LM head reads.

It drafts as EAGLE-3 does: level after level from its own states.
"""

from __future__ import annotations

from paceline.export.heads.config import HeadConfig, Shapes, Style
from paceline.export.heads.layer import matrix_shapes

STYLE = Style(fused=False, entry="joined", last_norm="none")


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    return {
        "fc.weight": (c.hidden, 2 * c.hidden),
        "fc.bias": (c.hidden,),
        "mlp_norm.weight": (c.hidden,),
        **matrix_shapes(c, c.hidden),
    }
