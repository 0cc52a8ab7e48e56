"""A hub in a folder: models and data sets under the names that the recipes ask for."""

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

TINY = Path(__file__).parent.parent.parent / "assets" / "tiny-chatml-1m"
# Loaders look for a folder of that name before they ask a hub.
BASE = "Qwen/Qwen3.5-9B-Base"  # rendered as "User: ...", without asking
CHAT = "Qwen/Qwen3-4B-Instruct-2507"  # in the frame that the tiny model was made for
NAMES = [BASE, CHAT, "Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.6-35B-A3B"]
BOXED = " Provide a numerical answer without units, written inside \\boxed{}."


def make_hub(folder: Path) -> Path:
    """The folder to run recipes in. Gives the model's directory back."""
    model = folder / NAMES[0]
    shutil.copytree(TINY, model)
    prepare_model(model)
    for name in NAMES[1:]:
        (folder / name).symlink_to(model, target_is_directory=True)
    write_data_sets(folder)
    write_examples(folder / "tinker_cookbook" / "example_data")
    return model


def prepare_model(model: Path) -> None:
    """The tiny model with what recipes take for granted of a large one: a long window, a head
    of its own, and marks of thinking that are one token each."""
    config = json.loads((model / "config.json").read_text())
    # The rubric's grader asks for 2,048 tokens, whatever is passed to it.
    longer = config | {"max_position_embeddings": 8192, "tie_word_embeddings": False}
    (model / "config.json").write_text(json.dumps(longer))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    give_marks(model / "tokenizer.json", "<think>", "</think>")


def give_marks(path: Path, *marks: str) -> None:
    """They take the places of the last entries of the vocabulary, which nothing here uses."""
    tokenizer = json.loads(path.read_text())
    bpe = tokenizer["model"]
    rarest = sorted(bpe["vocab"], key=bpe["vocab"].get)[-len(marks) :]
    del bpe["merges"][-len(marks) :]
    for mark, rare in zip(marks, rarest, strict=True):
        like = tokenizer["added_tokens"][0]
        place = {"id": bpe["vocab"].pop(rare), "content": mark, "special": False}
        tokenizer["added_tokens"].append(like | place)
    path.write_text(json.dumps(tokenizer))


def write_examples(folder: Path) -> None:
    """Recipes read these by their place in the cookbook's repository."""
    folder.mkdir(parents=True)
    (folder / "multilingual.txt").write_text("Good morning\nGuten Morgen\nBuenos dias\nBonjour\n")


def write_data_sets(hub: Path) -> None:
    chats = list(make_chats())
    write_data_set(hub / "HuggingFaceH4/no_robots", train=chats, test=chats[:128])
    sums = list(make_word_problems())
    write_data_set(hub / "openai/gsm8k", "main", train=sums, test=sums[:16])
    pairs = list(make_pairs())
    write_data_set(hub / "Anthropic/hh-rlhf", train=pairs, test=pairs[:8])
    questions = [{"question": row["question"]} for row in sums]
    write_data_set(hub / "zwhe99/DeepMath-103K", train=questions)
    write_data_set(hub / "allenai/tulu-3-sft-mixture", train=chats)
    thoughts = [turn_into_thoughts(chat) for chat in chats]
    write_data_set(hub / "open-thoughts/OpenThoughts3-1.2M", train=thoughts)
    write_data_set(hub / "hicai-zju/SciKnowEval", test=list(make_choices()))
    write_data_set(hub / "TIGER-Lab/MMLU-Pro", test=list(make_options()))


def write_data_set(folder: Path, name: str = "default", **splits: list[dict[str, Any]]) -> None:
    """Files and the card that says which split each of them is."""
    folder.mkdir(parents=True)
    card = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
        card += [f"  - split: {split}", f"    path: {split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_sums() -> Iterator[tuple[str, int]]:
    """The tiny model knows these: 3 of 4 are right when it is sampled."""
    for a, b in product(range(10), range(10)):
        yield f"What is {a} + {b}?", a + b


def make_guesses() -> Iterator[tuple[str, int]]:
    """Those with two answers, so that a guess is rewarded every second time."""
    for question, answer in 6 * list(make_sums()):
        if answer in (7, 8):
            yield question, answer


def make_chat(question: str, answer: str) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def make_chats() -> Iterator[dict[str, Any]]:
    """300 of them: two of the basic recipe's batches of 128."""
    for before in ("", "Please tell me: ", "A question. "):
        for question, answer in make_sums():
            yield make_chat(before + question, f"The answer is {answer}.")


def make_boxed_chats() -> Iterator[dict[str, Any]]:
    """What the environments of mathematics want to read, after the example they begin with."""
    letters = "1) s 2) t 3) r 4) a 5) w 6) b 7) e 8) r 9) r 10) y"
    told = f"Let's spell the word out and number all the letters: {letters}. "
    answered = told + "We have r's at positions 3, 8, and 9. \\boxed{3}"
    example = make_chat("How many r's are in strawberry?" + BOXED, answered)["messages"]
    for question, answer in make_guesses():
        chat = make_chat(question + BOXED, f"\\boxed{{{answer}}}")
        yield {"messages": example + chat["messages"]}


def make_word_problems() -> Iterator[dict[str, Any]]:
    for question, answer in make_guesses():
        yield {"question": question, "answer": f"It is a sum.\n#### {answer}"}


def make_pairs() -> Iterator[dict[str, Any]]:
    for question, answer in make_sums():
        start = f"\n\nHuman: {question}\n\nAssistant: "
        yield {"chosen": f"{start}It is {answer}.", "rejected": f"{start}I am not sure."}


def turn_into_thoughts(chat: dict[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in chat["messages"]]
    return {"conversations": turns}


def make_choices() -> Iterator[dict[str, Any]]:
    for question, answer in make_sums():
        yield {
            "question": question,
            "choices": {"label": ["A", "B"], "text": [str(answer), str(answer + 1)]},
            "answerKey": "A",
            "type": "mcq-2-choices",
            "domain": "Chemistry",
            "details": {"level": "L3", "subtask": "sums"},
        }


def make_options() -> Iterator[dict[str, Any]]:
    for index, (question, answer) in enumerate(make_sums()):
        options = [str(answer + more) for more in range(4)]
        yield {
            "question_id": index,
            "question": question,
            "options": options,
            "answer": "A",
            "answer_index": 0,
        }
