"""Workers that are asked for something they never come to the end of: `python -m tests.hanging_worker tuning|bench`."""

from __future__ import annotations

import sys
import time


class Hanging:
    """A kernel that hangs, as far as this process sees."""

    def hang(self) -> None:
        time.sleep(1000)

    def there(self) -> str:
        return "yes"


if __name__ == "__main__":
    if sys.argv[1:] == ["bench"]:
        from bench.worker import serve as serve_bench

        serve_bench(lambda request: time.sleep(1000))  # type: ignore[arg-type, return-value, func-returns-value]
    else:
        from tvmopt.tuning.process import serve

        serve(Hanging())
