"""`python -m bench.agent_as_shipped`: the agent, without the packages that only tests and checks install.

aiobotocore imports httpx when it finds it, and httpx brings a terminal library along. The image has neither.
"""

import sys

sys.modules["httpx"] = None  # type: ignore[assignment]  # the import system's way to say: not there

from agent.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
