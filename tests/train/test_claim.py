import signal
import subprocess
import sys
import time

import pytest

from recipes.train.claim import claim

HOLD = """
import sys, time
from pathlib import Path
from recipes.train.claim import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="no other run"), claim(tmp_path / "run", patience_s=0):
            pass
        first.send_signal(signal.SIGKILL)
        started = time.monotonic()
        with claim(tmp_path / "run"):
            assert time.monotonic() - started < 5
    finally:
        first.kill()
        first.wait()


def test_what_lets_go_is_waited_for(tmp_path):
    with claim(tmp_path):
        waits = []
        with (
            pytest.raises(ValueError, match="end it"),
            claim(tmp_path, patience_s=1.0, clock=lambda: 0.1 * len(waits), sleep=waits.append),
        ):
            pass
        assert len(waits) == 10
    with claim(tmp_path, patience_s=0):
        pass
