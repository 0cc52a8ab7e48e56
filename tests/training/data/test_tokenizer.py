"""The chat tokenizer against transformers' own, and what a model directory may lack."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput

TINY = Path("tests/assets/tiny-chatml-1m")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is  12 + 3?\n\u00e9 \U0001f642"},
    {"role": "assistant", "content": "15"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model's tokenizer that a test may spoil."""
    for path in TINY.glob("*.json*"):
        shutil.copy(path, tmp_path / path.name)
    shutil.copy(TINY / "chat_template.jinja", tmp_path)
    return tmp_path


def test_the_rendered_text_is_transformers_own() -> None:
    tokenizer = ChatTokenizer.load(TINY)
    theirs = AutoTokenizer.from_pretrained(TINY)
    for prompt in (False, True):
        wanted = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        assert tokenizer.apply_template(CHAT, add_generation_prompt=prompt) == wanted
        assert tokenizer.encode(wanted) == theirs(wanted, add_special_tokens=False)["input_ids"]


def test_text_survives_the_way_to_ids_and_back() -> None:
    tokenizer = ChatTokenizer.load(TINY)
    text = tokenizer.apply_template(CHAT)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "<|im_end|>" not in tokenizer.decode(tokenizer.encode(text), skip_special=True)


def test_the_end_token_and_the_context_are_known() -> None:
    tokenizer = ChatTokenizer.load(TINY)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.stop_ids == (2,)
    assert tokenizer.special_ids == {0, 1, 2}
    assert (tokenizer.max_length, tokenizer.vocab_size) == (512, 2048)


def test_several_end_tokens_come_from_the_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert ChatTokenizer.load(folder).stop_ids == (0, 2)


def test_a_template_inside_the_tokenizer_config_is_found(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert ChatTokenizer.load(folder).apply_template(CHAT[:1]) == "<|im_start|>Be brief."


def test_a_template_may_use_what_published_ones_use(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ tools | tojson }} {{ strftime_now('%Y-%m-%d') }}"
    )
    text = ChatTokenizer.load(folder).apply_template(CHAT[2:], tools=[{"name": "<f>"}])
    assert text == '15[{"name": "<f>"}] 2025-01-01'


def test_a_template_that_refuses_says_so_in_its_own_words(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidInput, match="refuses the messages: roles must alternate"):
        ChatTokenizer.load(folder).apply_template(CHAT)


def test_a_template_cannot_reach_the_machine(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidInput, match="unsafe"):
        ChatTokenizer.load(folder).apply_template(CHAT)


def test_a_template_that_is_no_jinja_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(InvalidInput, match="chat template is not Jinja"):
        ChatTokenizer.load(folder)


def test_a_model_without_template_can_still_encode(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = ChatTokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(InvalidInput, match=r"no chat template: add chat_template\.jinja"):
        tokenizer.apply_template(CHAT)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)


def test_a_broken_tokenizer_config_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"tokenizer_config\.json of the model is not JSON"):
        ChatTokenizer.load(folder)


def test_data_and_recipes_are_usable_without_torch() -> None:
    modules = ["examples", "validate", "batches", "demo"]
    names = [f"training.data.{name}" for name in modules] + ["training.recipes.sft"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
