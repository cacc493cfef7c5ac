"""Who got which numbers. In little room; it judges nothing and knows no gnats."""

from __future__ import annotations


class Ledger:
    """One reader's account of messages that were published as 1, 2, 3, ...

    *late* counts those that came first behind a newer one, *doubled* the further arrivals of one
    that was there. What has not come is *missing* as soon as a newer one is here.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.late = 0
        self.doubled = 0
        self._gaps: set[int] = set()

    def take(self, number: int) -> None:
        """This number has come."""
        if number > self.newest:
            self._gaps.update(range(self.newest + 1, number))
            self.newest = number
        elif number in self._gaps:
            self._gaps.remove(number)
            self.late += 1
        else:
            self.doubled += 1

    def missing(self, published: int) -> set[int]:
        """What has not come of the numbers up to *published*."""
        gone = {number for number in self._gaps if number <= published}
        return gone.union(range(self.newest + 1, published + 1))

    def forgive(self, numbers: set[int]) -> None:
        """Expect these no more. Should one come after all, it counts as doubled."""
        self._gaps -= numbers
        self.newest = max(self.newest, max(numbers, default=0))
