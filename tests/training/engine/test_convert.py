"""The GGUF conversion: the tiny model goes there and back, and the real one speaks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.data.tokenizer import ChatTokenizer
from training.engine.convert import (
    LAYER_NAMES,
    TOP_NAMES,
    convert,
    find_smollm2,
    is_converted,
    main,
    round_to_bf16,
)
from training.errors import InvalidInput

TINY = Path("tests/assets/tiny-chatml-1m")
TEMPLATE = (TINY / "chat_template.jinja").read_text()


def permute(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """What llama.cpp does to q and k on the way in."""
    rows, columns = values.shape
    halves = values.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def add_tokenizer(writer: GGUFWriter, pre: str) -> None:
    spec = json.loads((TINY / "tokenizer.json").read_text())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__))
    writer.add_token_types([3, 3, 3] + [1] * (len(spec["model"]["vocab"]) - 3))
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_chat_template(TEMPLATE)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)


def add_tensors(writer: GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
    names = {theirs: ours for ours, theirs in TOP_NAMES.items()}
    parts = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
    for name, values in tensors.items():
        if name in names:
            writer.add_tensor(names[name], values.float().numpy())
            continue
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        heads = {"attn_q.weight": 4, "attn_k.weight": 2}.get(parts[part])
        moved = permute(values, heads) if heads else values
        writer.add_tensor(f"blk.{layer}.{parts[part]}", moved.float().contiguous().numpy())


def write_gguf(path: Path, *, architecture: str = "llama", pre: str = "smollm") -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(128)
    writer.add_block_count(4)
    writer.add_feed_forward_length(384)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    add_tokenizer(writer, pre)
    add_tensors(writer, load_file(TINY / "model.safetensors"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny(tiny_gguf: Path) -> Path:
    return convert(tiny_gguf, tiny_gguf.parent / "tiny")


def test_every_tensor_comes_back_bit_for_bit(tiny: Path) -> None:
    found, wanted = load_file(tiny / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {values.dtype for values in found.values()} == {torch.bfloat16}


def test_the_converted_config_names_the_same_model(tiny: Path) -> None:
    found, wanted = (json.loads((folder / "config.json").read_text()) for folder in (tiny, TINY))
    shared = found.keys() & wanted.keys()
    assert {key: found[key] for key in shared} == {key: wanted[key] for key in shared}
    assert json.loads((tiny / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_converted_tokenizer_splits_as_the_first_one_did(tiny: Path) -> None:
    text = "<|im_start|>user\nWhat  is 12 + 345?\n\n 7\u00e9 \U0001f642<|im_end|>"
    found = Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text)
    assert found.ids == Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text).ids


def test_transformers_loads_the_folder_and_its_chat_template(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 0, 1)
    assert (tokenizer.model_max_length, tokenizer.chat_template) == (512, TEMPLATE)
    assert AutoModelForCausalLM.from_pretrained(tiny).num_parameters() == 1_049_728


def test_a_second_conversion_touches_nothing(tiny: Path, tiny_gguf: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.iterdir()}
    assert convert(tiny_gguf, tiny) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


def test_a_folder_without_its_manifest_is_not_taken_for_complete(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "model"
    dest.mkdir()
    (dest / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="holds other files: name a new folder"):
        convert(tiny_gguf, dest)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_older_conversion_is_replaced(tiny_gguf: Path, tmp_path: Path) -> None:
    dest = tmp_path / "model"
    dest.mkdir()
    (dest / "manifest.json").write_text('{"format": 0}')
    convert(tiny_gguf, dest)
    assert is_converted(tiny_gguf, dest)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "g.gguf", architecture="gemma3")
    with pytest.raises(InvalidInput, match=r"general\.architecture is 'gemma3'"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_way_of_splitting_text_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "g.gguf", pre="qwen2")
    with pytest.raises(InvalidInput, match=r"tokenizer\.ggml\.pre is 'qwen2'"):
        convert(source, tmp_path / "out")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(InvalidInput, match="is not a GGUF file"):
        convert(source, tmp_path / "out")


def test_rounding_to_bf16_is_torchs() -> None:
    values = np.random.default_rng(7).normal(size=4096).astype(np.float32)
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(round_to_bf16(values), wanted)


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m training.engine.convert DEST" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main([str(tmp_path / "file" / "model")]) == 1
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_smollm2_answers_after_conversion(tmp_path: Path) -> None:
    folder = convert(find_smollm2(), tmp_path / "smollm2")
    tokenizer = ChatTokenizer.load(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.encode(tokenizer.apply_template(question, add_generation_prompt=True))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(answer[0, len(prompt) :].tolist()) == (
        "The capital of France is Paris.<|im_end|>"
    )
