"""Documents become passages, passages pairs; killed, cancelled and failed on the way."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from tests.workers.cast import make_tiny
from training.data.tokenizer import ChatTokenizer
from training.types import SampledSequence, SampleOutput, SampleRequest
from webapp.accounts.models import Actor
from webapp.datasets.generations import cancel_generation, create_generation
from webapp.datasets.records import GeneratedPair, Generation
from webapp.deployments import calls
from webapp.deployments.models import SamplingCall
from workers import generate
from workers.claims import MAX_ATTEMPTS
from workers.remote import OperationFailed

TEXT = "\n\n".join(f"Town {name} lies on the river {name}a, far away." for name in "ABCDEFGHIJ")
Status = Generation.Status


@dataclass(slots=True)
class Answered:
    text: str
    tokenizer: ChatTokenizer

    def result(self, timeout: float | None = None) -> SampleOutput:
        if self.text == "error":
            raise OperationFailed("the server is gone")
        tokens = self.tokenizer.encode(self.text)
        sequence = SampledSequence(tokens=tokens, logprobs=[0.0] * len(tokens), stop_reason="stop")
        return SampleOutput(sequences=[sequence])


@dataclass(slots=True)
class FakeAsker:
    """Writes one pair about each passage; `act` happens before an answer is there."""

    tokenizer: ChatTokenizer
    texts: Mapping[int, str] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    die_at: int = 0

    def sample(self, request: SampleRequest, *, about: Mapping[str, Any]) -> Answered:
        number = about["passage"]
        if number == self.die_at:
            raise KeyboardInterrupt
        self.asked.append(number)
        pair = json.dumps({"question": f"Where is {number}?", "answer": f"At {number}."})
        return Answered(self.texts.get(number, pair), self.tokenizer)


@pytest.fixture
def generation(actor: Actor) -> Generation:
    return create_generation(
        actor=actor,
        name="towns",
        documents=[SimpleUploadedFile("towns.md", f"# Towns\n\n{TEXT}".encode())],
        base_model=make_tiny(),
        target="tiny",
        options={"passage_characters": 100, "max_tokens": 32},
    )


@pytest.fixture
def asker(generation: Generation) -> FakeAsker:
    return FakeAsker(ChatTokenizer.load(generation.base_model.path))


def read_found(generation: Generation) -> list[tuple[int, str]]:
    rows = GeneratedPair.objects.filter(passage__generation=generation)
    return list(rows.values_list("passage__number", "question"))


def test_every_passage_is_asked_about_and_its_pairs_wait_for_review(
    generation: Generation, asker: FakeAsker
) -> None:
    generate.take_up(generation, asker)
    generation.refresh_from_db()
    assert (generation.status, generation.error) == (Status.REVIEW, "")
    passages = list(generation.passages.all())
    assert len(passages) > 3
    assert {(each.document, each.place) for each in passages} == {("towns.md", "Towns")}
    numbers = [each.number for each in passages]
    assert asker.asked == numbers
    assert read_found(generation) == [(number, f"Where is {number}?") for number in numbers]


def test_a_worker_that_was_killed_is_followed_by_one_that_asks_the_rest(
    generation: Generation, asker: FakeAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "IN_FLIGHT", 1)
    asker.die_at = 3
    with pytest.raises(KeyboardInterrupt):
        generate.take_up(generation, asker)
    generation.refresh_from_db()
    assert generation.status == Status.ASKING
    assert read_found(generation) == [(1, "Where is 1?"), (2, "Where is 2?")]
    second = FakeAsker(asker.tokenizer)
    generate.take_up(generation, second)
    assert 1 not in second.asked
    assert 3 in second.asked
    numbers = [number for number, _ in read_found(generation)]
    assert numbers == list(range(1, generation.passages.count() + 1))


def test_an_answer_that_holds_no_pair_is_said_with_its_passage(
    generation: Generation, asker: FakeAsker
) -> None:
    asker.texts = {2: "I cannot say."}
    generate.take_up(generation, asker)
    generation.refresh_from_db()
    assert generation.status == Status.REVIEW
    (silent,) = generation.passages.exclude(error="")
    assert (silent.number, "No pair could be read" in silent.error) == (2, True)


def test_a_cancelled_generation_asks_no_further_and_keeps_what_it_has(
    actor: Actor, generation: Generation, asker: FakeAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "IN_FLIGHT", 1)
    asked: list[int] = []
    original = generate.take_answer

    def cancel_after_two(passage: Any, future: Any, tokenizer: Any) -> None:
        original(passage, future, tokenizer)
        asked.append(passage.number)
        if len(asked) == 2:
            cancel_generation(actor=actor, generation=Generation.objects.get())

    monkeypatch.setattr(generate, "take_answer", cancel_after_two)
    generate.take_up(generation, asker)
    generation.refresh_from_db()
    assert generation.status == Status.CANCELLED
    assert [number for number, _ in read_found(generation)] == [1, 2]


def test_a_model_that_cannot_answer_fails_the_generation_with_a_sentence(
    generation: Generation, asker: FakeAsker
) -> None:
    asker.texts = {1: "error"}
    generate.take_up(generation, asker)
    generation.refresh_from_db()
    assert generation.status == Status.FAILED
    assert generation.error == "The model could not be asked: the server is gone"


def test_a_document_without_text_fails_the_generation_with_its_name(actor: Actor) -> None:
    generation = create_generation(
        actor=actor,
        name="towns",
        documents=[SimpleUploadedFile("empty.md", b"   ")],
        base_model=make_tiny(),
    )
    generate.generate(generation.pk)
    generation.refresh_from_db()
    assert (generation.status, generation.error) == (Status.FAILED, "empty.md has no text")


def test_a_passage_that_leaves_no_room_is_said_and_not_asked(actor: Actor) -> None:
    generation = create_generation(
        actor=actor,
        name="towns",
        documents=[
            SimpleUploadedFile("long.md", b"Zzyzx qwertz jklm. " * 300),
            SimpleUploadedFile("short.md", b"A word."),
        ],
        base_model=make_tiny(),
        options={"passage_characters": 6000},
    )
    asker = FakeAsker(ChatTokenizer.load(generation.base_model.path))
    generate.take_up(generation, asker)
    assert asker.asked == [2]
    assert "longer than the model's context" in generation.passages.get(number=1).error


@dataclass(slots=True)
class ServingWaiter:
    """While the worker waits a server answers `left` calls, and then the worker is killed."""

    tokenizer: ChatTokenizer
    left: int

    def __enter__(self) -> "ServingWaiter":
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait(self, _request_id: str) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        for call in calls.claim_calls(worker="s1", limit=1):
            tokens = self.tokenizer.encode('{"question": "Q?", "answer": "A."}')
            logprobs = [0.0] * len(tokens)
            sequence = {"tokens": tokens, "logprobs": logprobs, "stop_reason": "stop"}
            body = json.dumps({"sequences": [sequence]}).encode()
            calls.finish_call(call, worker="s1", result=body, content_type="application/json")


def test_the_same_passage_is_the_same_call_after_a_kill(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real sampler: what was sent before is found and not sent again."""
    tokenizer = ChatTokenizer.load(generation.base_model.path)
    for left in (2, 100):
        monkeypatch.setattr(generate, "RedisWaiter", partial(ServingWaiter, tokenizer, left))
        with suppress(KeyboardInterrupt):
            generate.generate(generation.pk)
    generation.refresh_from_db()
    assert generation.status == Status.REVIEW
    sent = SamplingCall.objects.all()
    assert sent.count() == generation.passages.count() == len(read_found(generation))
    assert {call.purpose for call in sent} == {"generation"}


def kill(generation: Generation, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends after so many answers."""
    tokenizer = ChatTokenizer.load(generation.base_model.path)
    monkeypatch.setattr(generate, "RedisWaiter", partial(ServingWaiter, tokenizer, left))
    with suppress(KeyboardInterrupt):
        generate.generate(generation.pk)
    generation.refresh_from_db()


def test_workers_that_end_without_an_answer_give_the_generation_up(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(MAX_ATTEMPTS):
        kill(generation, 0, monkeypatch)
        assert generation.status == Status.ASKING
    kill(generation, 0, monkeypatch)
    assert generation.status == Status.FAILED
    assert "ended 3 times without an answer between" in generation.error


def test_workers_that_get_on_before_they_end_are_followed_by_others(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "IN_FLIGHT", 1)
    for num_passages in range(1, MAX_ATTEMPTS + 2):
        kill(generation, 1, monkeypatch)
        assert (generation.status, len(read_found(generation))) == (Status.ASKING, num_passages)
