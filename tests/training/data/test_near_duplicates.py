"""Near-duplicates against a comparison of every row with every other."""

import itertools
import random

import numpy as np
import pytest
from datasketch import MinHash  # type: ignore[import-untyped]

from training.data.histograms import count_lengths
from training.data.near_duplicates import (
    MAX_WORDS,
    NUM_HASHES,
    Sketches,
    count_groups,
    find_twins,
    hash_shingles,
    jaccard,
)

WORDS = [f"word{number}" for number in range(400)]


def sketch(texts: list[str]) -> Sketches:
    sketches = Sketches()
    for text in texts:
        sketches.add(text)
    return sketches


def exact(left: str, right: str) -> float:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}

    one, two = shingles(left), shingles(right)
    return len(one & two) / len(one | two)


def make_texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(60)]
    for text in texts[:20]:
        words = text.split()
        words[draw.randrange(40)] = "other"
        texts.append(" ".join(words))
    return texts


def test_each_row_has_the_signature_that_it_would_have_alone() -> None:
    together = sketch(["one two three four", "", "five six seven"])
    for place, text in enumerate(["one two three four", "", "five six seven"]):
        alone = MinHash(num_perm=NUM_HASHES, hashfunc=int)
        alone.update_batch(hash_shingles(text).tolist())
        row = together.signatures[place * NUM_HASHES : (place + 1) * NUM_HASHES]
        assert row.tolist() == alone.hashvalues.tolist()


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_every_row_near_an_earlier_one_is_found_with_its_similarity(threshold: float) -> None:
    texts = make_texts(1)
    twins = find_twins(sketch(texts), threshold=threshold)
    wanted = {
        right: exact(texts[left], texts[right])
        for left, right in itertools.combinations(range(len(texts)), 2)
        if exact(texts[left], texts[right]) >= threshold
    }
    assert len(wanted) > 10
    assert twins.keys() == wanted.keys()
    for row, (first, similarity) in twins.items():
        assert similarity == pytest.approx(exact(texts[first], texts[row]))
    assert count_groups(twins) == len(wanted)


def test_case_and_marks_do_not_count_and_short_rows_are_compared_whole() -> None:
    texts = ["Hello!", "hello", "", "", "Hello you", "one two three", "One, two - THREE."]
    twins = find_twins(sketch(texts), threshold=0.8)
    assert {row: first for row, (first, _) in twins.items()} == {1: 0, 6: 5}


def test_rows_of_one_side_are_compared_with_the_other_only() -> None:
    same = "the quick brown fox jumps over the lazy dog"
    twins = find_twins(sketch([same, same, "nothing like it at all", same, same]), num_leaders=2)
    assert twins == {3: (0, 1.0), 4: (0, 1.0)}


def test_two_thousand_equal_rows_are_one_group() -> None:
    twins = find_twins(sketch(["the same words in every row"] * 2000))
    assert len(twins) == 1999
    assert count_groups(twins) == 1


def test_no_row_and_one_row_have_no_twin() -> None:
    assert find_twins(sketch([])) == {}
    assert find_twins(sketch(["alone in the world"])) == {}


def test_a_row_of_a_million_words_is_cut() -> None:
    assert len(hash_shingles("a b c d " * 250_000)) == 4
    long = " ".join(str(number) for number in range(MAX_WORDS * 2))
    assert len(hash_shingles(long)) == MAX_WORDS - 2
    assert jaccard(np.zeros(0, np.uint32), np.zeros(0, np.uint32)) == 0


def test_a_histogram_doubles_its_bins_and_counts_what_is_too_long() -> None:
    found = count_lengths([1, 2, 3, 4, 5, 8, 9, 300], context=256)
    assert found.bins == (
        (0, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 1),
        (17, 32, 0), (33, 64, 0), (65, 128, 0), (129, 256, 0), (257, 512, 1),
    )  # fmt: skip
    assert (found.num_rows, found.num_tokens, found.longest, found.num_over) == (8, 332, 300, 1)
    assert count_lengths([], context=8).num_rows == 0
