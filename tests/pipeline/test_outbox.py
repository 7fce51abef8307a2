"""Tensors that have left are let go."""

import weakref

import torch
from torch import Tensor

from blocks.pipeline.action import Action
from blocks.pipeline.in_process import in_process_transports
from blocks.pipeline.outbox import Outbox
from blocks.pipeline.transport import TensorSpec
from blocks.pipeline.watch import Watch


def test_what_is_delivered_after_the_last_send_is_let_go() -> None:
    first, second = in_process_transports(2)
    watch = Watch(first, report_after_s=1.0, abort_after_s=10.0)
    outbox = Outbox(first, watch, (0, 1), synchronous=False)
    tensor = torch.zeros(3)
    gone = weakref.ref(tensor)
    action = Action.parse("SF0>1(0,0)", chunk=0)
    outbox.send([tensor], action)
    outbox.let_go()
    spec = TensorSpec.of(tensor)
    del tensor
    assert gone() is not None, "nobody has asked for it"
    arrival: Tensor | None = second.receive(spec, 0, action).wait(1.0)
    assert arrival is gone()
    arrival = None
    assert gone() is not None, "the outbox has not looked"
    outbox.let_go()
    assert gone() is None
