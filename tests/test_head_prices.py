"""What a level of a head must bring where the clock may not choose."""

from __future__ import annotations

import msgspec
from toy_heads import opened

from paceline.runtime.control.controller import Controller
from paceline.runtime.control.costs import Points
from paceline.runtime.control.estimates import CostCurve
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.drafters.names import parse
from paceline.runtime.drafters.prices import arm_of
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.request import Request, Sampling


def test_where_the_clock_may_not_choose_a_level_of_a_head_is_cheap() -> None:
    head = opened(40, tuple(range(40)), True).head()
    head.model.part = msgspec.structs.replace(head.model.part, accepted=[0.7, 0.6, 0.6, 0.6])
    made, request = (
        HeadDrafter(head, TapBuffer((), 4, 64)),
        Request(Sampling(temperature=1.0), "rejection", 0, 0, 2),
    )
    curve = CostCurve(Points(16, ((1, 0.002), (5, 0.006)), ((1, 0.0),)), 5)
    arm = arm_of(parse("toy", {"toy": head.model.part}), 5, lambda part: curve)
    control = Controller([arm], curve, 16, off=False)
    control.begin(request, 0)
    made.begin(request)
    limit = control.limit(100)
    assert limit.step_price == arm.fixed
    assert made.worth(limit, limit.depth) == 4
