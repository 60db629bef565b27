"""The cores that other programs leave to this one."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

BLOCK = bytes(1 << 18)  # hashing one takes a millisecond or less, without Python's lock


def cores_for(threads: int, seconds: float = 0.1) -> float:
    """The cores that as many busy threads get, measured for so long.

    Beside a program that keeps as many threads busy, it is half of them, and so on. Limits of a
    container count as well.
    """

    def work(until: float) -> float:
        begin = time.thread_time()
        while time.perf_counter() < until:
            hashlib.sha256(BLOCK)
        return time.thread_time() - begin

    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        spent = sum(pool.map(work, [begin + seconds] * threads))
        return spent / (time.perf_counter() - begin)
