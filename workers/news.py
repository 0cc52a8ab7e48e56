"""Whether runs have got something to do, without asking the database each time."""

import time
from dataclasses import dataclass

from webapp.core.events import read_work_count

LOOK_SECONDS = 1.0  # how late work is found whose hint was lost


@dataclass(slots=True, kw_only=True)
class News:
    """What was seen at the last look."""

    count: int | None = None
    looked_at: float = -LOOK_SECONDS

    def expire(self) -> None:
        """The next look is to be a real one."""
        self.count = None

    def has_come(self) -> bool:
        """True counts as a look. Where the count cannot be read, it is always time for one."""
        count, moment = read_work_count(), time.monotonic()
        if count is not None and count == self.count and moment - self.looked_at < LOOK_SECONDS:
            return False
        self.count, self.looked_at = count, moment
        return True
