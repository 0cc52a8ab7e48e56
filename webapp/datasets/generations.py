"""Every write to generations: documents in, passages asked about, pairs reviewed, a version out."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
from django.conf import settings
from django.core.files.base import File
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import transaction
from django.template.defaultfilters import filesizeformat
from django.utils.timezone import now

from training.errors import InvalidInput
from training.row_filters import number
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.dispatch import GENERATE_PAIRS, send_task
from webapp.core.errors import NotFound, UserError
from webapp.core.events import project_group, publish
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import GeneratedPair, Generation, Passage
from webapp.datasets.services import check_name, create_version
from webapp.fleet.models import BaseModel

ENDINGS = (".md", ".markdown", ".txt", ".text", ".pdf")
MAX_DOCUMENTS = 50
MAX_DOCUMENT_BYTES = 50 * 1024**2
MAX_TEXT = 4_000  # characters of a question or an answer
ANNOUNCED = timedelta(seconds=10)
DEFAULTS: Mapping[str, Any] = {
    "num_pairs": 3,
    "passage_characters": 1500,
    "max_tokens": 512,
    "temperature": 0.7,
    "seed": 0,
}
OPTIONS = {
    "num_pairs": number(1, 20),
    "passage_characters": number(100, 20_000),
    "max_tokens": number(16, 8192),
    "temperature": number(0, 2, float),
    "seed": number(0, 2**31),
}

Status = Generation.Status
State = GeneratedPair.State
ACTIVE = (Status.READING, Status.ASKING)


def create_generation(
    *,
    actor: Actor,
    name: str,
    documents: Sequence["File[bytes]"],
    base_model: BaseModel,
    checkpoint_id: str | None = None,
    target: str = "",
    options: Mapping[str, Any] | None = None,
) -> Generation:
    """A worker reads the documents and asks the model about every passage of them."""
    check_can_write(actor)
    generation = Generation(
        project=actor.project,
        name=check_name(name),
        base_model=base_model,
        checkpoint_id=checkpoint_id,
        target=target[:200],
        options=check_generation_options(options or {}),
        created_by=actor.user,
    )
    _check_documents(documents)
    folder: Path = settings.HONE_HOME / "documents" / generation.pk
    is_stored = False
    try:
        generation.documents = _store(folder, documents)
        with transaction.atomic():
            generation.save(force_insert=True)
            send_task(GENERATE_PAIRS, generation.pk)
        is_stored = True
    finally:
        if not is_stored:
            shutil.rmtree(folder, ignore_errors=True)
    return generation


def check_generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(options.keys() - OPTIONS.keys()):
        raise UserError(f"There is no option {unknown[0]!r:.60}.", field=unknown[0][:60])
    try:
        given = {name: OPTIONS[name](name, value) for name, value in options.items()}
    except InvalidInput as error:
        raise UserError(f"{error}.", field=str(error).split(" ", 1)[0]) from error
    return {**DEFAULTS, **given}


def _check_documents(documents: Sequence["File[bytes]"]) -> None:
    if not documents:
        raise UserError("Choose a document: Markdown, text or PDF.", field="documents")
    if len(documents) > MAX_DOCUMENTS:
        raise UserError(f"Up to {MAX_DOCUMENTS} documents are taken at once.", field="documents")
    for document in documents:
        name = _name(document)
        if PurePosixPath(name).suffix.lower() not in ENDINGS:
            raise UserError(
                f"{name or 'A file'} is of no known format: upload .md, .txt or .pdf.",
                field="documents",
            )
        if not document.size:
            raise UserError(f"{name} is empty.", field="documents")
        if document.size > MAX_DOCUMENT_BYTES:
            size, limit = filesizeformat(document.size), filesizeformat(MAX_DOCUMENT_BYTES)
            raise UserError(f"{name} has {size}; up to {limit} are taken.", field="documents")


def _name(document: "File[bytes]") -> str:
    return PurePosixPath((document.name or "").replace("\\", "/")).name[-255:].replace("\x00", "")


def _store(folder: Path, documents: Iterable["File[bytes]"]) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    kept = []
    for place, document in enumerate(documents):
        path = folder / f"{place}{PurePosixPath(_name(document)).suffix.lower()}"
        with path.open("wb") as file:
            for chunk in document.chunks():
                file.write(chunk)
        kept.append(
            {
                "name": _name(document),
                "path": str(path.relative_to(settings.HONE_HOME)),
                "size_bytes": document.size,
            }
        )
    return kept


def begin_asking(generation: Generation, passages: Iterable[Passage]) -> bool:
    """Reading -> asking. False: it was cancelled meanwhile, or another process was first."""
    with transaction.atomic():
        if not _change(generation, (Status.READING,), status=Status.ASKING):
            return False
        Passage.objects.bulk_create(passages, batch_size=500)
    return True


def record_pairs(passage: Passage, pairs: Sequence[tuple[str, str]], error: str = "") -> None:
    """What came of a passage, once: a worker that comes by again finds it asked."""
    with transaction.atomic():
        asked = Passage.objects.filter(pk=passage.pk, is_asked=False)
        if asked.update(is_asked=True, error=error) != 1:
            return
        GeneratedPair.objects.bulk_create(
            GeneratedPair(passage=passage, number=place, question=question, answer=answer)
            for place, (question, answer) in enumerate(pairs, start=1)
        )
        _announce(passage.generation)


def end_asking(generation: Generation) -> None:
    _change(generation, (Status.ASKING,), status=Status.REVIEW)


def fail_generation(generation: Generation, error: str) -> None:
    _change(generation, ACTIVE, status=Status.FAILED, error=error)


def cancel_generation(*, actor: Actor, generation: Generation) -> None:
    """What was made so far stays, to be reviewed."""
    check_can_write(actor, project_id=generation.project_id)
    if not _change(generation, ACTIVE, status=Status.CANCELLED):
        raise UserError(f"{generation} is over: there is nothing to cancel.")


def _change(generation: Generation, among: Sequence[str], **fields: Any) -> bool:
    changed = Generation.objects.filter(pk=generation.pk, status__in=among).update(**fields)
    if changed:
        for name, value in fields.items():
            setattr(generation, name, value)
        _announce(generation)
    return changed == 1


def _announce(generation: Generation) -> None:
    publish(project_group(generation.project_id), "datasets")


def announce_generations() -> None:
    """For messages that were lost and workers that died: who is at it already is not disturbed."""
    late = Generation.objects.filter(status__in=ACTIVE, created_at__lt=now() - ANNOUNCED)
    for pk in late.values_list("pk", flat=True):
        send_task(GENERATE_PAIRS, pk)


def find_pair(generation: Generation, pair_id: int) -> GeneratedPair:
    pairs = GeneratedPair.objects.select_related("passage__generation")
    pair = pairs.filter(passage__generation=generation, pk=pair_id).first()
    if pair is None:
        raise NotFound("There is no such pair.")
    return pair


def review_pair(
    *,
    actor: Actor,
    pair: GeneratedPair,
    state: str = "",
    question: str | None = None,
    answer: str | None = None,
) -> None:
    """Accept, reject or take back; a pair that was corrected is accepted with that."""
    check_can_write(actor, project_id=pair.passage.generation.project_id)
    _check_open(pair.passage.generation)
    if question is not None or answer is not None:
        pair.question = _check_text("question", pair.question if question is None else question)
        pair.answer = _check_text("answer", pair.answer if answer is None else answer)
        pair.is_edited, state = True, state or State.ACCEPTED
    if state not in State.values:
        raise UserError(f"The state is one of {', '.join(State.values)}.", field="state")
    pair.state = state
    pair.save(update_fields=["question", "answer", "is_edited", "state"])


def review_all(*, actor: Actor, generation: Generation, state: str) -> int:
    """Every pair that nobody has decided about; how many."""
    check_can_write(actor, project_id=generation.project_id)
    _check_open(generation)
    if state not in (State.ACCEPTED, State.REJECTED):
        raise UserError("Accept or reject them.", field="state")
    proposed = GeneratedPair.objects.filter(passage__generation=generation, state=State.PROPOSED)
    return proposed.update(state=state)


def _check_open(generation: Generation) -> None:
    if generation.status == Status.DONE:
        raise UserError(f"{generation} was made into a version: its pairs stay as they are.")


def _check_text(name: str, text: str) -> str:
    text = text.replace("\x00", "").strip()
    if not text or len(text) > MAX_TEXT:
        raise UserError(
            f"The {name} has {len(text):,} characters: write 1 to {MAX_TEXT:,}.", field=name
        )
    return text


def finish_generation(*, actor: Actor, generation: Generation) -> DatasetVersion:
    """Its accepted pairs are the next version of the dataset of its name."""
    check_can_write(actor, project_id=generation.project_id)
    if generation.status in ACTIVE:
        raise UserError(f"{generation} is still being made: cancel it, or wait for its end.")
    _check_open(generation)
    pairs = GeneratedPair.objects.filter(passage__generation=generation, state=State.ACCEPTED)
    num_pairs = pairs.count()
    if not num_pairs:
        raise UserError("No pair is accepted yet: accept at least one.")
    rows = (write_row(pair) for pair in pairs.select_related("passage").iterator(chunk_size=500))
    with TemporaryUploadedFile("pairs.jsonl", "application/jsonl", 0, "utf-8") as file:
        for row in rows:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        file.size = file.tell()
        return _finish(actor, generation, file, num_pairs)


def _finish(
    actor: Actor, generation: Generation, file: "File[bytes]", num_pairs: int
) -> DatasetVersion:
    before = generation.status
    if not _change(generation, (before,), status=Status.DONE):
        raise UserError(f"Somebody else changed {generation} at this moment: try once more.")
    owner = replace(actor, project=generation.project)
    version = None
    try:
        version = create_version(
            actor=owner,
            name=generation.name,
            upload=file,
            kind=DatasetVersion.Kind.PROMPT_COMPLETION,
            derivation={"generation": _describe(generation, num_pairs)},
        )
    finally:
        if version is None:
            _change(generation, (Status.DONE,), status=before)
    Generation.objects.filter(pk=generation.pk).update(version=version)
    return version


def _describe(generation: Generation, num_pairs: int) -> dict[str, Any]:
    made = GeneratedPair.objects.filter(passage__generation=generation).count()
    return {
        "id": generation.pk,
        "target": generation.target,
        "documents": [document["name"] for document in generation.documents],
        "num_pairs": made,
        "num_accepted": num_pairs,
    }


def write_row(pair: GeneratedPair) -> dict[str, Any]:
    passage = pair.passage
    return {
        "prompt": pair.question,
        "completion": pair.answer,
        "document": passage.document,
        "place": passage.place,
        "passage": passage.text,
        "is_edited": pair.is_edited,
    }


def delete_generation(*, actor: Actor, generation: Generation) -> None:
    """With its documents; the version that was made of it stays."""
    check_can_write(actor, project_id=generation.project_id)
    with transaction.atomic():
        Generation.objects.filter(pk=generation.pk).delete()
        folder = settings.HONE_HOME / "documents" / generation.pk
        transaction.on_commit(partial(shutil.rmtree, folder, ignore_errors=True))
        _announce(generation)
