"""Preference pairs of the tests: to what the tiny model was not taught."""

from collections.abc import Iterator

from training.data.rows import Row


def differences_over_sums() -> Iterator[Row]:
    """The tiny model knows sums only: it begins with the wrong preference."""
    numbers = [(left, right) for left in range(10) for right in range(1, 10)]
    for number, (left, right) in enumerate(numbers, 1):
        question = f"What is {left} - {right}?"
        yield make_pair(number, question, str(left - right), str(left + right))


def make_pair(number: int, question: str, chosen: str, rejected: str) -> Row:
    return Row(
        number=number,
        messages=[{"role": "user", "content": question}],
        metadata={
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        },
    )
