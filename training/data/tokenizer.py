"""A model directory's tokenizer and chat template, without the library that needs torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from training.architectures import find_context
from training.errors import InvalidInput

Message = Mapping[str, Any]  # role, content; more where the template knows more
Spans = list[tuple[int, int]]

# A row must render to the same text every day, or a replayed run would train on other tokens.
TEMPLATE_DATE = datetime(2025, 1, 1, tzinfo=UTC)
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def show_nul(text: str) -> str:
    """A model may say the byte 0, which PostgreSQL stores in no text: it reads as an unknown."""
    return text.replace("\0", "\ufffd")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """Text to ids and back, and messages to text. Adds no token that the text does not spell."""

    tokenizer: Tokenizer
    template: str | None
    special: Mapping[str, str]  # bos_token ... as the template calls them
    special_ids: frozenset[int]
    stop_ids: tuple[int, ...]  # the end tokens; empty where the model names none
    max_length: int | None  # None where the model names none
    render: Callable[..., str] | None
    lead_ids: tuple[int, ...] = ()  # what the model expects before a text that no template made

    @classmethod
    def load(cls, path: Path | str) -> "ChatTokenizer":
        folder = Path(path)
        config = read_json(folder / "tokenizer_config.json")
        tokenizer = load_tokenizer(folder)
        special = read_special(config)
        template = read_template(folder, config)
        return cls(
            tokenizer=tokenizer,
            template=template,
            special=special,
            special_ids=find_special_ids(tokenizer),
            stop_ids=find_stop_ids(folder, tokenizer, special),
            max_length=find_max_length(folder, config),
            render=None if template is None else compile_template(template),
            lead_ids=find_lead(folder),
        )

    @property
    def eos_id(self) -> int | None:
        """The token that ends an answer, as the tokenizer names it."""
        return self.find_id("eos_token")

    @property
    def bos_id(self) -> int | None:
        return self.find_id("bos_token")

    @property
    def pad_id(self) -> int | None:
        return self.find_id("pad_token")

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def find_id(self, name: str) -> int | None:
        token = self.special.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        return self.encode_spans(text)[0]

    def encode_text(self, text: str) -> list[int]:
        """A text that no template made, with what the model expects before one."""
        ids = self.encode(text)
        lead = list(self.lead_ids)
        return ids if ids[: len(lead)] == lead else lead + ids

    def encode_spans(self, text: str) -> tuple[list[int], Spans]:
        """Ids, and the characters each stands for; for a part of one character, that whole one."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return show_nul(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def apply_template(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        if self.render is None:
            raise InvalidInput(
                "the model has no chat template: add chat_template.jinja to its directory"
            )
        try:
            return self.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **self.special,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidInput(
                f"the model's chat template refuses the messages: {error}"
            ) from error


def read_json(path: Path) -> dict[str, Any]:
    """An absent file says nothing; a broken one is the model directory's fault."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path.name} of the model is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidInput(f"the model directory {folder.name} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    # Templates spell their special tokens; and byte-level post-processors trim offsets.
    tokenizer.post_processor = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def find_lead(folder: Path) -> tuple[int, ...]:
    """The tokens that the model's own post-processor puts before every text."""
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare = whole.encode("a", add_special_tokens=False).ids
    dressed = whole.encode("a").ids
    places = range(len(dressed) - len(bare) + 1)
    found = (at for at in places if dressed[at : at + len(bare)] == bare)
    return tuple(dressed[: next(found, 0)])


def read_special(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in SPECIAL_NAMES:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found


def read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def find_special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(index for index, token in added.items() if token.special)


def find_stop_ids(
    folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]
) -> tuple[int, ...]:
    """What ends an answer: generation_config.json may name several, the tokenizer one."""
    found = read_json(folder / "generation_config.json").get("eos_token_id", [])
    ids = [found] if isinstance(found, int) else list(found or [])
    if (eos := special.get("eos_token")) is not None:
        ids.append(tokenizer.token_to_id(eos))
    return tuple(dict.fromkeys(index for index in ids if index is not None))


def find_max_length(folder: Path, config: Mapping[str, Any]) -> int | None:
    """The model's context; a tokenizer that knows no limit says 1e30."""
    model = read_json(folder / "config.json")
    limits = [
        config.get("model_max_length"),
        find_context(model) if "max_position_embeddings" in model else None,
    ]
    return min((int(n) for n in limits if isinstance(n, int | float) and n < 1e9), default=None)


def compile_template(template: str) -> Callable[..., str]:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMark, loopcontrols]
    )
    environment.filters["tojson"] = dump_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    try:
        return environment.from_string(template).render
    except TemplateError as error:
        raise InvalidInput(f"the model's chat template is not Jinja: {error}") from error


def dump_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def refuse(message: str) -> None:
    raise TemplateError(message)


class GenerationMark(Extension):
    """`{% generation %}` marks the answer for other programs; here it renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
