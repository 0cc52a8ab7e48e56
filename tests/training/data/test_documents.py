"""Documents as people upload them, whole, locked, scanned and made to burst."""

import zlib
from pathlib import Path

import pypdf
import pytest

from training.data import documents
from training.data.documents import Section, cut_passages, read_bounded, read_document
from training.data.question_answers import MAX_LENGTH, read_pairs, write_request
from training.errors import InvalidInput

RIVER = "The Vltava flows through Prague."


def write_pdf(path: Path, *pages: str, stream: bytes | None = None) -> Path:
    """Written by hand: a catalog, its pages, a font, and each page's text."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * place} 0 R" for place in range(count))
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for place, text in enumerate(pages):
        content = stream or zlib.compress(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode())
        head = f"<< /Length {len(content)} /Filter /FlateDecode >>\nstream\n".encode()
        parts.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792]"
            b" /Resources << /Font << /F1 3 0 R >> >>"
            + f" /Contents {5 + 2 * place} 0 R >>".encode()
        )
        parts.append(head + content + b"\nendstream")
    body, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n".encode() + part + b"\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(parts) + 1
    body += f"xref\n0 {size}\n0000000000 65535 f \n{table}".encode()
    body += (
        f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body) - len(table) - 27}\n%%EOF"
    ).encode()
    path.write_bytes(body)
    return path


def test_markdown_is_read_by_its_headings(tmp_path: Path) -> None:
    path = tmp_path / "0.md"
    path.write_bytes(b"\xef\xbb\xbfIntro.\r\n\r\n# Rivers\n\nThe Vltava.\n\n## Hills\nPetrin.\n")
    found = read_document(path, "town.md")
    assert [section.place for section in found] == ["", "Rivers", "Hills"]
    assert found[1].text.startswith("# Rivers")


def test_a_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "0.pdf", RIVER, "Petrin is a hill.")
    assert read_document(path, "town.pdf") == [
        Section(place="page 1", text=RIVER),
        Section(place="page 2", text="Petrin is a hill."),
    ]
    # Whatever it is called.
    assert len(read_document(path, "town.txt")) == 2


def test_an_encrypted_pdf_is_refused_and_one_without_a_password_is_read(tmp_path: Path) -> None:
    for password, name in (("secret", "locked.pdf"), ("", "open.pdf")):
        writer = pypdf.PdfWriter(clone_from=write_pdf(tmp_path / "0.pdf", RIVER))
        writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
        writer.write(tmp_path / name)
    with pytest.raises(InvalidInput, match=r"^locked.pdf is encrypted: save it without"):
        read_document(tmp_path / "locked.pdf", "locked.pdf")
    assert read_document(tmp_path / "open.pdf", "open.pdf")[0].text == RIVER


def test_a_scanned_pdf_is_told_from_an_empty_one(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter()
    writer.add_blank_page(200, 200)
    writer.write(tmp_path / "0.pdf")
    with pytest.raises(InvalidInput, match="it was scanned"):
        read_document(tmp_path / "0.pdf", "scan.pdf")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.md", b"  \n ", "a.md has no text"),
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8 text: byte 4"),
        ("a.txt", b"a\x00b", "it has NUL characters"),
        ("a.pdf", b"%PDF-1.4 nothing more", "a.pdf is no PDF that can be read"),
        ("a.pdf", b"PK\x03\x04", "a.pdf is no PDF that can be read"),
    ],
)
def test_a_document_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidInput, match=complaint):
        read_document(tmp_path / "file", name)


def test_a_pdf_that_unpacks_to_more_than_it_may_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(b" " * 1_000_000) for _ in range(600)) + packer.flush()
    path = write_pdf(tmp_path / "0.pdf", "x", stream=bomb)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(
        InvalidInput, match=r"bomb.pdf (unpacks to more|could not be read|has pages)"
    ):
        read_document(path, "bomb.pdf")


def test_a_long_document_is_refused_with_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 10)
    (tmp_path / "0.txt").write_text("word " * 10)
    with pytest.raises(InvalidInput, match="50 characters of text; up to 10 are taken"):
        read_bounded(tmp_path / "0.txt", "long.txt")


def test_a_document_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_SECONDS", 0)
    (tmp_path / "0.txt").write_text("words")
    with pytest.raises(InvalidInput, match="took longer than 0 s"):
        read_document(tmp_path / "0.txt", "slow.txt")


def test_passages_are_whole_paragraphs_as_long_as_they_fit() -> None:
    text = "One two.\n\nThree four.\n\n" + "Five is a long sentence. " * 3 + "\n\n" + "x" * 70
    found = list(cut_passages([Section(place="p", text=text)], max_characters=30))
    assert found[0].text == "One two.\n\nThree four."
    assert all(0 < len(passage.text) <= 30 for passage in found)
    joined = "".join(passage.text for passage in found)
    assert joined.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
    assert list(cut_passages([], max_characters=30)) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "Where?", "answer": "Here."}\n{"question": "Who?", "answer": "We."}',
        'Sure:\n```json\n[{"question": "Where?", "answer": "Here."},'
        ' {"Question": "Who?", "Answer": "We."}]\n```',
        '{"pairs": [{"q": "Where?", "a": "Here."}, {"q": "Who?", "a": "We."}]}',
        "Q: Where?\nA: Here.\n\nQ: Who?\nA: We.",
        "**Question 1:** Where?\n**Answer 1:** Here.\n\n**Question 2:** Who?\n**Answer 2:** We.",
        "1. Question: Where?\n   Answer: Here.\n2. Question: Who?\n   Answer: We.",
        '{"question": "Where?", "answer": "Here."} {"question": "Who?", "answer": "We."} {"ques',
        '{"question": "Where?", "answer": "Here."}, broken } {"question": "Who?", "answer": "We."}',
    ],
)
def test_pairs_are_read_in_whatever_way_the_model_wrote_them(text: str) -> None:
    assert read_pairs(text, most=5) == [("Where?", "Here."), ("Who?", "We.")]
    assert read_pairs(text, most=1) == [("Where?", "Here.")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        '{"question": "Where?"}',
        '{"question": 5, "answer": "x"}',
        '{"question": " ", "answer": "x"}',
        '{"question": "Where?", "answer": "' + "x" * (MAX_LENGTH + 1) + '"}',
        '{"question": "Half \\ud83d?", "answer": "x"}',
        "A: An answer to nothing",
        "{" * 5_000,
        "[" * 50_000 + "{",
    ],
)
def test_what_is_no_pair_is_left_out(text: str) -> None:
    assert read_pairs(text, most=5) == []


def test_a_pair_counts_once_and_the_request_has_the_passage() -> None:
    line = '{"question": "Where?", "answer": "Here."}\n'
    assert read_pairs(line * 3, most=5) == [("Where?", "Here.")]
    (message,) = write_request("{curly} " + RIVER, num_pairs=2)
    assert "2 questions" in message["content"]
    assert message["content"].endswith("{curly} " + RIVER)


def test_a_number_of_thousands_of_digits_is_no_pair() -> None:
    assert read_pairs('{"question": ' + "1" * 5000 + "}", most=5) == []
