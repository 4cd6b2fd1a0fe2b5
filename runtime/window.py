"""Which tokens of a long text a shorter context keeps: the first few and the recent ones."""

from __future__ import annotations


def kept(length: int, capacity: int, sinks: int = 4) -> int:
    """Where the recent part starts: what is kept are `tokens[:sinks]` and `tokens[start:]` (0 keeps all).

    A function of the length alone, so that every way to a text leads to the same window. It moves in steps of
    half the capacity, for each step costs reading the kept tokens again. The first tokens stay because models
    put attention there that has nowhere else to go (StreamingLLM, 2309.17453).
    """
    if length <= capacity:
        return 0
    sinks = min(sinks, capacity // 4)
    step = max((capacity - sinks) // 2, 1)
    return sinks + -(-(length - capacity) // step) * step
