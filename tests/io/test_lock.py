from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from capfilt.io.lock import locked


def test_lock_is_free_again_though_a_child_of_its_holder_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "folder/.lock"
    with locked(path, wait_s=0) as mine:
        assert mine
        child = os.fork()
        if not child:
            with locked(path, wait_s=0) as found:
                os._exit(int(found))  # the exit code: whether the child has it, too
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        sleeper = os.fork()
        if not sleeper:
            time.sleep(60)
            os._exit(0)
    child = os.fork()
    if not child:
        with locked(path, wait_s=0) as found:
            os._exit(int(found))
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    finally:
        os.kill(sleeper, signal.SIGKILL)
        os.waitpid(sleeper, 0)
