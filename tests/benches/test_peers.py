"""Peers: who is missing says why, who is wrong is left out, and those of torch are right."""

import pytest
import torch

from benches import peers
from benches.cases import PackedCase, PagedCase
from benches.peers import Peer, Unfit, every_peer, ready

CPU = torch.device("cpu")
SIZES = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "dtype": torch.float32}


def test_no_peer_is_imported_before_it_is_made(monkeypatch):
    for peer in every_peer():
        if not peer.everywhere:
            assert peer.missing(CPU) == "needs an accelerator"
        elif not peer.needs:
            assert peer.missing(CPU) == ""
    gone = Peer("x", "y", lambda case: lambda: None, ("no_such_package", "torch"), everywhere=True)
    assert gone.missing(CPU) == "no_such_package not installed"


def test_every_peer_stands_beside_a_row():
    known = {(p.name, p.operation) for p in every_peer()}
    assert len(known) == len(every_peer()), "two peers share a name and an operation"


def test_wrong_broken_and_unfit_peers_are_left_out_with_their_reason(monkeypatch):
    def unfit(case):
        raise Unfit("no groups of 3")

    def broken(case):
        return lambda: 1 // 0

    planted = [
        Peer("right", "op", lambda case: lambda: case, everywhere=True),
        Peer("wrong", "op", lambda case: lambda: case + 1, everywhere=True),
        Peer("unfit", "op", unfit, everywhere=True),
        Peer("broken", "op", broken, everywhere=True),
        Peer("other", "another op", broken, everywhere=True),
    ]
    monkeypatch.setattr(peers, "every_peer", lambda: planted)

    def check(found):
        assert found == 5, f"expected 5, got {found}"

    calls, missing = ready("op", 5, CPU, check)
    assert list(calls) == ["right"]
    assert missing["wrong"].startswith("wrong result: expected 5, got 6")
    assert missing["unfit"] == "Unfit: no groups of 3"
    assert missing["broken"].startswith("ZeroDivisionError")
    assert "other" not in missing


@pytest.mark.parametrize("operation", ["paged_decode", "paged_extend"])
def test_torch_peers_over_pages_are_right(operation):
    counts = [1, 1] if operation == "paged_decode" else [5, 5]
    case = PagedCase.random([21, 21], counts, **SIZES)
    calls, _ = ready(operation, case, CPU, case.check)
    assert "gather + sdpa" in calls
    ragged = PagedCase.random([21, 9], counts, **SIZES)
    _, missing = ready(operation, ragged, CPU, ragged.check)
    assert missing["gather + sdpa"] == "Unfit: sequences of different lengths"


def test_torch_peers_of_prefill_are_right_forward_and_backward():
    case = PackedCase.random(2, 17, grad=True, **SIZES)
    calls, missing = ready("prefill", case, CPU, case.check)
    assert "sdpa math" in calls, missing
    from benches.peers.torch_attention import upstream

    grad = upstream(case.query)
    calls, missing = ready(
        "prefill_backward", case, CPU, lambda found: case.check_gradients(found, grad)
    )
    assert "sdpa math" in calls, missing


def test_the_checks_of_a_case_can_fail():
    case = PagedCase.random([21, 9], **SIZES)
    with pytest.raises(AssertionError, match="sequence 0"):
        case.check(torch.zeros_like(case.query))
    packed = PackedCase.random(1, 8, **SIZES)
    with pytest.raises(AssertionError, match="first heads"):
        packed.check(packed.query)
    with pytest.raises(AssertionError, match="gradient of q"):
        packed.check_gradients(packed.tensors, packed.query)
