"""Documents -> passages: Markdown, text and PDF, whatever people upload under these names.

`python -m training.data.documents PATH NAME` reads one in a process of its own, whose memory and
time are bounded: a PDF of a few kilobytes may unpack to more than the machine has.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pypdf
import pypdf.errors
import regex  # type: ignore[import-untyped]

from training.errors import InvalidInput

ENDINGS = (".md", ".markdown", ".txt", ".text", ".pdf")
MAX_CHARACTERS = 5_000_000  # of one document's text
MAX_PAGES = 3_000
MAX_MEMORY_BYTES = 2 * 1024**3
MAX_SECONDS = 120
HEADING = regex.compile(r"^#{1,6}\s+(.{1,200})$", regex.MULTILINE)
SENTENCE_END = regex.compile(r"(?<=[.!?\u3002])\s+")
BLANK_LINES = regex.compile(r"\n\s*\n")
REFUSED = 3  # the exit status of a process that said why


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Text that belongs together, with the heading or page that it stands under."""

    place: str
    text: str


def read_document(path: Path, name: str) -> list[Section]:
    """In a process of its own; what that refuses, or does not live through, is a sentence."""
    command = [sys.executable, "-m", "training.data.documents", str(path), name]
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"{name} took longer than {MAX_SECONDS} s to read") from None
    if done.returncode == REFUSED:
        raise InvalidInput(done.stdout.decode("utf-8", "replace"))
    if done.returncode:
        raise InvalidInput(
            f"{name} could not be read: it needs more memory or time than a document may take, or"
            " it is damaged"
        )
    return [Section(**each) for each in json.loads(done.stdout)]


def read_bounded(path: Path, name: str) -> list[Section]:
    readers = {".pdf": read_pdf}
    read = readers.get(Path(name).suffix.lower(), read_text)
    sections = [section for section in read(path, name) if section.text.strip()]
    if not sections:
        raise InvalidInput(f"{name} has no text")
    if (size := sum(len(section.text) for section in sections)) > MAX_CHARACTERS:
        raise InvalidInput(
            f"{name} has {size:,} characters of text; up to {MAX_CHARACTERS:,} are taken: split it"
        )
    return sections


def read_text(path: Path, name: str) -> Iterator[Section]:
    """Headings of Markdown part a document; other text is one section."""
    content = path.read_bytes()
    if content.startswith(b"%PDF-"):
        yield from read_pdf(path, name)
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8 text: byte {error.start + 1:,} is none") from error
    if "\x00" in text:
        raise InvalidInput(f"{name} is no text: it has NUL characters")
    starts = [(0, ""), *[(found.start(), found[1].strip()) for found in HEADING.finditer(text)]]
    ends = [*[start for start, _ in starts[1:]], len(text)]
    for (start, heading), end in zip(starts, ends, strict=True):
        yield Section(place=heading, text=text[start:end].replace("\r\n", "\n"))


def read_pdf(path: Path, name: str) -> Iterator[Section]:
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise InvalidInput(f"{name} is encrypted: save it without a password")
        if (num_pages := len(reader.pages)) > MAX_PAGES:
            raise InvalidInput(f"{name} has {num_pages:,} pages; up to {MAX_PAGES:,} are taken")
        pages = [page.extract_text().replace("\x00", "") for page in reader.pages]
    except pypdf.errors.LimitReachedError as error:
        raise InvalidInput(f"{name} unpacks to more than a document may have: {error}") from error
    except (pypdf.errors.PyPdfError, ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{name} is no PDF that can be read: {error}") from error
    if not any(page.strip() for page in pages):
        raise InvalidInput(
            f"{name} has pages and no text: it was scanned. Run text recognition over it first"
        )
    for number, text in enumerate(pages, start=1):
        # A lone surrogate is how some fonts name a character that Unicode has not.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        yield Section(place=f"page {number}", text=clean)


def cut_passages(sections: Sequence[Section], *, max_characters: int) -> Iterator[Section]:
    """Whole paragraphs, as many as fit; a longer one is cut between sentences, or anywhere."""
    for section in sections:
        held = ""
        for piece in list_pieces(section.text, max_characters):
            if held and len(held) + len(piece) + 2 > max_characters:
                yield Section(place=section.place, text=held)
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
        if held:
            yield Section(place=section.place, text=held)


def list_pieces(text: str, max_characters: int) -> Iterator[str]:
    for paragraph in BLANK_LINES.split(text):
        clean = paragraph.strip()
        if len(clean) <= max_characters:
            if clean:
                yield clean
            continue
        for sentence in SENTENCE_END.split(clean):
            for start in range(0, len(sentence), max_characters):
                if piece := sentence[start : start + max_characters].strip():
                    yield piece


def bound_this_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> int:
    bound_this_process()
    try:
        sections = read_bounded(Path(sys.argv[1]), sys.argv[2])
    except InvalidInput as error:
        sys.stdout.write(str(error))
        return REFUSED
    found = [{"place": section.place, "text": section.text} for section in sections]
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
