import torch
import torch.distributed as dist

from recipes.train.layout import Layout
from recipes.train.place import Place, _groups


def test_what_steps_say_never_meets_a_checkpoint_that_is_being_written(monkeypatch):
    """Two exchanges on one gloo group at once take each other's messages, or wait for ever."""
    used: list[object] = []
    monkeypatch.setattr(dist, "new_group", lambda *_, **__: object())
    for name in ("all_reduce", "broadcast_object_list", "barrier"):
        monkeypatch.setattr(dist, name, lambda *_, group=None, **__: used.append(group))
    place = Place(Layout(dp=2), 0, *_groups(Layout(dp=2), 0))
    place.collect(torch.zeros(2))
    place.largest(1.0)
    place.share("corpus")
    place.wait_for_all()
    assert len(used) == 4
    assert place.files is not None
    assert all(group is not place.files for group in used)
