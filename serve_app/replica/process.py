"""Children of a replica die with it: the kernel kills an engine process when its parent is gone.

vLLM loads `die_with_parent` as a plugin in every process that it starts (entry point
`vllm.general_plugins`). It acts only under a replica, which sets the variable below.
"""

import ctypes
import multiprocessing
import os
import signal

DIE_WITH_PARENT = "VLLM_CHAT_DIE_WITH_PARENT"
PR_SET_PDEATHSIG = 1  # prctl(2)


def protect_children() -> None:
    """Have every engine process that this process starts from now on die with it."""
    os.environ[DIE_WITH_PARENT] = "1"


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends; a no-op outside a replica."""
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(DIE_WITH_PARENT) != "1":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the request reached the kernel.
    if os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)
