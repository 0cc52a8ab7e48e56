"""Work that must happen once: who is at it, and what is given up."""

import pytest

from workers.claims import MAX_ATTEMPTS, claim


def test_work_that_somebody_is_at_is_not_begun_again() -> None:
    with claim("dsv-1") as first, claim("dsv-1") as second, claim("dsv-2") as other:
        assert (first, second, other) == (1, 0, 1)
    with claim("dsv-1") as later:
        assert later == 1


def test_a_process_that_does_not_come_back_leaves_the_number_of_its_attempt() -> None:
    attempts: list[int] = []
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(KeyboardInterrupt):
            die_at_work(attempts)
    assert attempts == [1, 2, 3, 4]


def die_at_work(attempts: list[int]) -> None:
    with claim("dsv-1") as attempt:
        attempts.append(attempt)
        raise KeyboardInterrupt
