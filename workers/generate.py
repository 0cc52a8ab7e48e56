"""Documents -> passages -> question-answer pairs by a served model; taken up where it was."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Any, Protocol

from django.conf import settings

from training.data.documents import cut_passages, read_document
from training.data.question_answers import read_pairs, write_request
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Future
from training.types import SampleOutput, SampleRequest, SamplingParams
from webapp.datasets.generations import (
    begin_asking,
    end_asking,
    fail_generation,
    record_pairs,
)
from webapp.datasets.records import Generation, Passage
from webapp.deployments.models import SamplingCall
from workers.claims import MAX_ATTEMPTS, claim, forget_attempts
from workers.keep_going import ProcessEnds, shutting_down
from workers.remote import OperationFailed, RedisWaiter
from workers.samplers import RemoteSampler

MAX_PASSAGES = 5_000
IN_FLIGHT = 8
LOOK_SECONDS = 2.0  # between two looks at whether somebody cancelled
GIVEN_UP = (
    f"The process that asked the model ended {MAX_ATTEMPTS} times without an answer between. What"
    " was made before can be reviewed; for the rest, begin another one with smaller documents."
)
MAX_AT_ONCE = 4  # in this process: they mostly wait, and other tasks need its threads too

Status = Generation.Status
places = BoundedSemaphore(MAX_AT_ONCE)


class Cancelled(Exception):  # noqa: N818 - not an error: somebody wants no more of it
    """Somebody cancelled the generation."""


class Asker(Protocol):
    """What answers about passages: a RemoteSampler, or a fake of it."""

    def sample(
        self, request: SampleRequest, *, about: Mapping[str, Any]
    ) -> Future[SampleOutput]: ...


def generate(generation_id: str) -> None:
    """Twice at once is one. Where every place is taken it is announced again later."""
    if shutting_down.is_set() or not places.acquire(blocking=False):
        return
    try:
        with claim(generation_id) as attempt:
            related = ("project", "base_model", "checkpoint__run")
            row = Generation.objects.select_related(*related).filter(pk=generation_id).first()
            if not attempt or row is None:
                return
            if attempt > MAX_ATTEMPTS:
                fail_generation(row, GIVEN_UP)
                return
            take_up(row)
    finally:
        places.release()


def take_up(generation: Generation, asker: Asker | None = None) -> None:
    try:
        if generation.status == Status.READING:
            begin_asking(generation, list(make_passages(generation)))
        if generation.status == Status.ASKING:
            with RedisWaiter() as waiter:
                ask(generation, asker or open_sampler(generation, waiter))
            end_asking(generation)
    except InvalidInput as error:
        fail_generation(generation, str(error))
    except OperationFailed as error:
        fail_generation(generation, f"The model could not be asked: {error}")
    except (Cancelled, ProcessEnds):
        return


def fail(generation_id: str, error: str) -> None:
    fail_generation(Generation.objects.get(pk=generation_id), error)


def make_passages(generation: Generation) -> Iterator[Passage]:
    number = 0
    for document in generation.documents:
        sections = read_document(settings.HONE_HOME / document["path"], document["name"])
        limit = generation.options["passage_characters"]
        for section in cut_passages(sections, max_characters=limit):
            number += 1
            if number > MAX_PASSAGES:
                raise InvalidInput(
                    f"the documents have more than {MAX_PASSAGES:,} passages: cut longer ones, or "
                    "upload fewer documents at once"
                )
            yield Passage(
                generation=generation,
                number=number,
                document=document["name"],
                place=section.place[:120],
                text=section.text,
            )


def open_sampler(generation: Generation, waiter: RedisWaiter) -> RemoteSampler:
    return RemoteSampler(
        project=generation.project,
        run=None,
        base_model=generation.base_model,
        checkpoint=generation.checkpoint,
        purpose=SamplingCall.Purpose.GENERATION,
        waiter=waiter,
        keep_going=KeepAsking(generation_id=generation.pk),
    )


@dataclass(slots=True, kw_only=True, eq=False)
class KeepAsking:
    """Called while answers are waited for: hears Cancel, and the end of this process."""

    generation_id: str
    looked_at: float = field(default=0.0)

    def __call__(self) -> None:
        if shutting_down.is_set():
            raise ProcessEnds
        if time.monotonic() - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = time.monotonic()
        check_wanted(self.generation_id)


def check_wanted(generation_id: str) -> None:
    if not Generation.objects.filter(pk=generation_id, status=Status.ASKING).exists():
        raise Cancelled


def ask(generation: Generation, asker: Asker) -> None:
    """A few passages at a time; what was answered before is not asked again."""
    tokenizer = ChatTokenizer.load(generation.base_model.path)
    waiting: deque[tuple[Passage, Future[SampleOutput]]] = deque()
    for pk in list(generation.passages.filter(is_asked=False).values_list("pk", flat=True)):
        passage = Passage.objects.get(pk=pk)
        passage.generation = generation
        request = make_request(generation, passage, tokenizer)
        if request is None:
            record_pairs(passage, [], "The passage is longer than the model's context.")
            continue
        about = {"generation": generation.pk, "passage": passage.number}
        waiting.append((passage, asker.sample(request, about=about)))
        if len(waiting) >= IN_FLIGHT:
            take_answer(*waiting.popleft(), tokenizer)
            check_wanted(generation.pk)
    while waiting:
        take_answer(*waiting.popleft(), tokenizer)
        check_wanted(generation.pk)


def make_request(
    generation: Generation, passage: Passage, tokenizer: ChatTokenizer
) -> SampleRequest | None:
    """None: the passage leaves no room for an answer."""
    options = generation.options
    messages = write_request(passage.text, num_pairs=options["num_pairs"])
    prompt = tokenizer.encode(tokenizer.apply_template(messages, add_generation_prompt=True))
    room = generation.base_model.context_tokens - len(prompt)
    if room < min(options["max_tokens"], 16):
        return None
    params = SamplingParams(
        max_tokens=min(options["max_tokens"], room),
        temperature=options["temperature"],
        seed=options["seed"] + passage.number,
    )
    return SampleRequest(prompt=prompt, params=params)


def take_answer(passage: Passage, future: Future[SampleOutput], tokenizer: ChatTokenizer) -> None:
    text = tokenizer.decode(future.result().sequences[0].tokens, skip_special=True)
    pairs = read_pairs(text, most=passage.generation.options["num_pairs"])
    error = "" if pairs else f"No pair could be read from the answer: {text.strip():.300}"
    record_pairs(passage, pairs, error.replace("\x00", ""))
    forget_attempts(passage.generation_id)
