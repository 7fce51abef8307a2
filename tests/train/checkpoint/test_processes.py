import os
import subprocess
import sys

import torch

from recipes.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.train.checkpoint import processes


def test_meshes_of_real_processes_save_and_load_in_each_others_layouts(tmp_path):
    whole = {name: processes.whole(name) for name in processes.ONE}
    alone = {f"only{rank}": torch.full((2,), float(rank)) for rank in range(4)}
    save_checkpoint(tmp_path / "by_one", Checkpoint(9, whole | alone, {}))
    command = [sys.executable, "-m", "tests.train.checkpoint.processes"]
    running = [
        subprocess.Popen(
            [*command, str(rank), "4", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(4)
    ]
    try:
        said = [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * 4, "\n".join(said)
    for step in (3, 4):
        found = load_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}")
        assert found.state == {"by": 0}
        for name, tensor in (whole | alone).items():
            assert torch.equal(found.tensors[name], tensor), name
