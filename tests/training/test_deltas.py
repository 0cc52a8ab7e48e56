"""Deltas by their bytes: any state of weights comes back from any other one, to the bit."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import deltas
from training.deltas import (
    MAX_DELTAS,
    decode,
    encode,
    find_chain,
    find_width,
    read_difference,
    read_frame,
    restore_folder,
    restore_next,
    write_difference,
)
from training.errors import InvalidInput
from training.manifest import DELTA_FILE, MANIFEST_FILE, Manifest
from training.model_files import (
    INDEX_FILE,
    WEIGHTS_FILE,
    ByteArray,
    digest_file,
    digest_weights,
    lay_out_floats,
    read_layouts,
    write_layout,
)

WIDTHS = st.sampled_from([1, 2, 4, 8])
SHAPES = {"embed": (7, 3), "empty": (0, 4), "norm": (3,), "scalar": ()}


def make_bytes(data: bytes) -> ByteArray:
    return np.frombuffer(data, np.uint8)


@given(WIDTHS, st.data())
def test_any_bytes_come_back_from_any_others(width: int, data: st.DataObject) -> None:
    size = width * data.draw(st.integers(0, 200))
    before, after = (
        make_bytes(data.draw(st.binary(min_size=size, max_size=size))) for _ in range(2)
    )
    frame = encode(before, after, width)
    assert bytes(decode(before, frame, width)) == bytes(after)
    assert (not frame) == (bytes(before) == bytes(after))


@given(st.lists(st.integers(0, 2**16 - 1), max_size=50))
def test_every_pattern_of_bits_survives_not_only_those_that_are_numbers(bits: list[int]) -> None:
    """Among them infinities, negative zeros, and every payload of a NaN in bfloat16."""
    after = np.array(bits, np.uint16).view(np.uint8)
    before = np.full(len(bits), 0x7FC1, np.uint16).view(np.uint8)
    assert bytes(decode(before, encode(before, after, 2), 2)) == bytes(after)


def test_close_numbers_make_a_small_delta() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=20_000).astype(np.float32)
    before, after = (
        (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        for values in (weights, weights * np.float32(1.002))
    )
    assert len(encode(before, after, 2)) < 0.4 * len(after)


SHORT_FRAME = encode(make_bytes(b"a"), make_bytes(b"b"), 1)


@pytest.mark.parametrize("frame", [b"no frame at all", SHORT_FRAME])
def test_a_frame_of_something_else_is_refused(frame: bytes) -> None:
    with pytest.raises(InvalidInput, match="difference"):
        decode(make_bytes(b"four"), frame, 2)


def test_a_frame_with_a_turned_bit_is_refused() -> None:
    before, after = np.zeros(1000, np.uint8), np.arange(1000).astype(np.uint8)
    frame = bytearray(encode(before, after, 2))
    frame[-1] ^= 1
    with pytest.raises(InvalidInput, match="cannot be decompressed"):
        decode(before, bytes(frame), 2)


class Store:
    """Folders of one small model whose weights change from one to the next."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.random = np.random.default_rng(0)
        self.layout = lay_out_floats(WEIGHTS_FILE, SHAPES)
        self.states: list[list[ByteArray]] = []

    def make_state(self) -> list[ByteArray]:
        """The norm stays as it is; the others change."""
        made = [
            self.random.integers(0, 256, each.stop - each.start).astype(np.uint8)
            for each in self.layout.entries
        ]
        if self.states:
            made[2] = self.states[-1][2]
        self.states.append(made)
        return made

    def write_base(self, name: str) -> Path:
        folder = self.parent / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "small"}')
        written = write_layout(folder, self.layout, self.make_state())
        files = {WEIGHTS_FILE: written, "config.json": digest_file(folder / "config.json")}
        self.write_manifest(folder, type="base", files=files, digest=self.digest(folder))
        return folder

    def digest(self, folder: Path) -> str:
        """Of the newest state, as a whole folder would have it."""
        scratch = self.parent / f"scratch-{folder.name}"
        scratch.mkdir()
        return digest_weights({WEIGHTS_FILE: write_layout(scratch, self.layout, self.states[-1])})

    def write_delta(self, name: str, previous: Path) -> Path:
        folder = self.parent / name
        folder.mkdir()
        before, after = self.states[-1], self.make_state()
        with (folder / DELTA_FILE).open("wb") as stream:
            for entry, old, new in zip(self.layout.entries, before, after, strict=True):
                write_difference(stream, old, new, find_width(entry))
        self.write_manifest(
            folder,
            type="delta",
            files={DELTA_FILE: digest_file(folder / DELTA_FILE)},
            digest=self.digest(folder),
            previous=previous.name,
            previous_digest=read_fields(previous)["digest"],
        )
        return folder

    def write_manifest(self, folder: Path, **fields: object) -> None:
        plain = {
            "optimizer_digest": None,
            "base_digest": "b",
            "spec": {"rank": 0},
            "step": 1,
            "probe": {"tokens": [1], "logprobs": []},
            "versions": {},
            "format": 1,
        }
        (folder / MANIFEST_FILE).write_text(json.dumps({**plain, **fields}))


def read_fields(folder: Path) -> dict[str, str]:
    fields: dict[str, str] = json.loads((folder / MANIFEST_FILE).read_text())
    return fields


def change_fields(folder: Path, fields: Mapping[str, str]) -> None:
    (folder / MANIFEST_FILE).write_text(json.dumps({**read_fields(folder), **fields}))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def chain(store: Store) -> list[Path]:
    """A base and two deltas."""
    folders = [store.write_base("base")]
    folders += [store.write_delta("first", folders[-1])]
    return [*folders, store.write_delta("second", folders[-1])]


def restore(folder: Path) -> Path:
    target = folder.with_name(f"restored-{folder.name}")
    target.mkdir()
    restore_folder(folder, target)
    return target


def test_each_folder_of_a_chain_is_restored_to_the_bit(store: Store, chain: list[Path]) -> None:
    for folder, state in zip(chain, store.states, strict=True):
        target = restore(folder)
        assert sorted(each.name for each in target.iterdir()) == ["config.json", WEIGHTS_FILE]
        content = (target / WEIGHTS_FILE).read_bytes()
        assert content == store.layout.header + b"".join(bytes(each) for each in state)
        assert read_layouts(target) == [store.layout]


def test_the_last_delta_alone_makes_the_same_bits_of_what_was_restored_before_it(
    store: Store, chain: list[Path]
) -> None:
    before, whole = restore(chain[1]), restore(chain[2])
    target = chain[2].with_name("next")
    target.mkdir()
    (chain[0] / WEIGHTS_FILE).unlink()  # nothing of it is read
    restore_next(chain[2], before, target)
    for name in ("config.json", WEIGHTS_FILE):
        assert (target / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("wrong", ["base", "changed"])
def test_a_delta_on_other_weights_than_it_was_made_of_is_noticed(
    chain: list[Path], wrong: str
) -> None:
    before = restore(chain[0] if wrong == "base" else chain[1])
    if wrong == "changed":
        file = before / WEIGHTS_FILE
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    target = chain[2].with_name("next")
    target.mkdir()
    with pytest.raises(InvalidInput, match="second cannot be restored from"):
        restore_next(chain[2], before, target)


def test_sides_of_a_base_that_were_changed_are_noticed(chain: list[Path]) -> None:
    before, target = restore(chain[1]), chain[2].with_name("next")
    target.mkdir()
    (chain[0] / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"config\.json is not as it was written"):
        restore_next(chain[2], before, target)


def test_a_delta_whose_base_is_gone_says_what_it_needs(chain: list[Path]) -> None:
    shutil.rmtree(chain[0])
    with pytest.raises(InvalidInput, match="first holds only what differs from base, which is not"):
        find_chain(chain[2])


def test_an_unchanged_tensor_costs_its_length_alone(store: Store, chain: list[Path]) -> None:
    frames = []
    with (chain[1] / DELTA_FILE).open("rb") as stream:
        while length := stream.read(8):
            frames.append(stream.read(int.from_bytes(length, "little")))
    assert [bool(frame) for frame in frames] == [True, False, True]


def test_a_large_tensor_is_cut_into_blocks_of_which_only_changed_ones_cost_anything(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "BLOCK_BYTES", 16)
    base = store.write_base("base")
    restore(store.write_delta("delta", base))
    before = store.random.integers(0, 256, 70).astype(np.uint8)
    after = before.copy()
    after[[3, 40]] ^= 1
    file = io.BytesIO()
    write_difference(file, before, after, 2)
    file.seek(0)
    assert [bool(read_frame(file)) for _ in range(5)] == [True, False, True, False, False]
    file.seek(0)
    assert bytes(read_difference(file, before, 2)) == bytes(after)
    assert not file.read()


def test_a_chain_that_is_too_long_is_refused(store: Store) -> None:
    folder = store.write_base("base")
    for number in range(MAX_DELTAS):
        folder = store.write_delta(f"delta-{number}", folder)
    assert len(find_chain(folder)) == MAX_DELTAS + 1
    with pytest.raises(InvalidInput, match="names no folder beside it"):
        find_chain(store.write_delta("one-more", folder))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut_short, turn_a_bit, Path.unlink])
@pytest.mark.parametrize(
    ("place", "file"),
    [(0, WEIGHTS_FILE), (0, "config.json"), (1, DELTA_FILE), (2, DELTA_FILE), (1, MANIFEST_FILE)],
)
def test_damage_anywhere_in_a_chain_is_refused_by_name(
    chain: list[Path], harm: object, place: int, file: str
) -> None:
    harm(chain[place] / file)  # type: ignore[operator]
    with pytest.raises(InvalidInput, match=rf"{chain[place].name}.*{file}|{file}"):
        restore(chain[2])


@pytest.mark.parametrize("name", ["../base", "second", "", "/etc", "."])
def test_a_manifest_that_leads_elsewhere_is_refused(chain: list[Path], name: str) -> None:
    change_fields(chain[2], {"previous": name})
    with pytest.raises(InvalidInput):
        find_chain(chain[2])


def test_another_base_under_the_same_name_is_noticed(chain: list[Path]) -> None:
    change_fields(chain[0], {"digest": "of other weights"})
    with pytest.raises(InvalidInput, match="difference to other weights than base has"):
        restore(chain[1])


def test_an_adapter_is_no_whole_model(chain: list[Path]) -> None:
    change_fields(chain[0], {"type": "adapter"})
    with pytest.raises(InvalidInput, match="base holds an adapter"):
        restore(chain[1])


def test_a_model_of_several_files_is_read_by_its_index(tmp_path: Path, store: Store) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    layouts = [lay_out_floats(name, {f"{name}.weight": (2, 2)}) for name in names]
    for layout in layouts:
        write_layout(tmp_path, layout, [np.zeros(16, np.uint8)])
    (tmp_path / "consolidated.safetensors").write_bytes(b"the same again, as others name it")
    index = {"weight_map": {f"{name}.weight": name for name in names}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    assert read_layouts(tmp_path) == layouts
    (tmp_path / INDEX_FILE).write_text("[]")
    with pytest.raises(InvalidInput, match=f"{INDEX_FILE} cannot be read"):
        read_layouts(tmp_path)


LIST = b"\x02" + b"\0" * 7 + b"[]"
NUMBER = b"\x08" + b"\0" * 7 + b'{"a": 1}'


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, LIST, NUMBER])
def test_a_file_that_is_none_of_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InvalidInput, match=f"{WEIGHTS_FILE} cannot be read"):
        read_layouts(tmp_path)


def test_the_manifest_of_a_run_without_these_fields_is_an_adapters() -> None:
    assert Manifest.__dataclass_fields__["type"].default == "adapter"
