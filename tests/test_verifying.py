"""Checking a set: sound sets have no findings, and every kind of damage is found where it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atdiff_core.data.decoding import SampleDecoder
from atdiff_core.data.index import load_index, parsed_index
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.verifying import MAX_FINDINGS, shard_findings, unlisted_tars
from atdiff_core.data.writing import write_shards


def make_set(out: Path) -> Path:
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (40, 12, 12), dtype=np.uint8)
    source = ArraySource("noise", "CC0", ["a", "b"], images, (np.arange(40) % 2).astype(np.uint8))
    assert list(write_shards(source, out, [12], image_channels=1, samples_per_shard=25))
    return out / "12px"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_set(tmp_path)


def findings(folder: Path, *, hashes: bool = True) -> list[str]:
    index = parsed_index((folder / "index.json").read_bytes(), "index.json")
    return [line for shard in index.shards for line in shard_findings(folder, shard, hashes=hashes)]


def changed(path: Path, at: int, change: Callable[[int], int] = lambda byte: byte ^ 0x40) -> None:
    content = bytearray(path.read_bytes())
    content[at] = change(content[at])
    path.write_bytes(content)


def test_a_sound_set_has_no_findings(sound: Path) -> None:
    for hashes in (True, False):
        assert findings(sound, hashes=hashes) == []
    assert list(unlisted_tars(sound, load_index(sound))) == []


def test_changed_pixels_are_found_by_hash_at_their_offset(folder: Path) -> None:
    tar = folder / "000001.tar"
    table = MemberTable.load(members_file(tar), tar_bytes=tar.stat().st_size)
    place = table.place(7, "png")
    assert place is not None
    changed(tar, place.offset + 50)
    assert findings(folder, hashes=False) == []
    assert findings(folder) == [f"{tar}, offset {place.offset}: the {place.size} bytes of {table.key(7)}.png changed"]


def test_a_changed_header_is_found_by_structure_at_its_offset(folder: Path) -> None:
    tar = folder / "000000.tar"
    table = MemberTable.load(members_file(tar), tar_bytes=tar.stat().st_size)
    offset = int(table.offsets["cls"][3]) - 512
    changed(tar, offset + 2)
    found = findings(folder, hashes=False)
    assert len(found) == 1
    assert found[0].startswith(f"{tar}, offset {offset}: damaged header")


def test_a_sample_that_is_not_what_the_index_says_is_found_by_decoding(folder: Path) -> None:
    index = load_index(folder)
    assert not shard_findings(folder, index.shards[1], hashes=False, decoder=SampleDecoder(index))
    for other, message in [
        (index.but(classes=("a",)), "must be the number of one of 1"),
        (index.but(resolution=13), "13"),
    ]:
        found = shard_findings(folder, index.shards[1], hashes=False, decoder=SampleDecoder(other))
        assert all("000001.tar, offset " in line and message in line for line in found)
        assert found


def test_changed_padding_is_found_by_hash(folder: Path) -> None:
    tar = folder / "000000.tar"
    table = MemberTable.load(members_file(tar), tar_bytes=tar.stat().st_size)
    changed(tar, int(table.offsets["cls"][0]) + 100)
    assert findings(folder) == [
        f"{tar}: its sha256 differs from the index, though every member is as it was: a header or padding changed"
    ]


def test_lost_cut_and_foreign_files_are_found(folder: Path) -> None:
    first, second = folder / "000000.tar", folder / "000001.tar"
    content = second.read_bytes()
    second.write_bytes(content[:5000])
    (folder / "000009.tar").write_bytes(content)
    first.unlink()
    found = findings(folder, hashes=False)
    assert found[0] == f"{first}: missing"
    assert found[1] == f"{second}, offset 5000: has 5000 bytes, the index says {len(content)}"
    assert any("offset" in line and "tar" in line for line in found[2:])
    assert list(unlisted_tars(folder, load_index_unchecked(folder))) == [f"{folder / '000009.tar'}: not in the index"]


def load_index_unchecked(folder: Path):  # type: ignore[no-untyped-def]
    return parsed_index((folder / "index.json").read_bytes(), "index.json")


def test_two_shards_that_changed_places_are_found(folder: Path) -> None:
    first, second = folder / "000000.tar", folder / "000001.tar"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert {line.split(":")[0].split(",")[0] for line in findings(folder, hashes=False)} == {str(first), str(second)}


def test_a_table_that_is_lost_damaged_or_of_another_tar_is_found(folder: Path) -> None:
    first, second = members_file(folder / "000000.tar"), members_file(folder / "000001.tar")
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert any(str(first) in line for line in findings(folder, hashes=False))
    first.write_bytes(whole[:40])
    assert any(f"{first}: not a table" in line for line in findings(folder, hashes=False))
    first.unlink()
    assert any(f"{first}: the table of members is missing" in line for line in findings(folder, hashes=False))


def test_damage_everywhere_is_not_listed_without_end(folder: Path) -> None:
    tar = folder / "000000.tar"
    table = MemberTable.load(members_file(tar), tar_bytes=tar.stat().st_size)
    content = bytearray(tar.read_bytes())
    for extension in table.extensions:
        for offset in table.offsets[extension]:
            content[offset] ^= 1
    tar.write_bytes(content)
    found = findings(folder)
    assert len(found) == MAX_FINDINGS + 1
    assert found[-1] == f"{tar}: and more"


@given(at=st.integers(0, 2**31), bit=st.integers(0, 7), of_table=st.booleans())
@settings(max_examples=80)
def test_no_flipped_bit_of_any_file_escapes(sound: Path, at: int, bit: int, of_table: bool) -> None:
    tar = sound / "000001.tar"
    file = members_file(tar) if of_table else tar
    whole = file.read_bytes()
    try:
        changed(file, at % len(whole), lambda byte: byte ^ (1 << bit))
        found = findings(sound)
    finally:
        file.write_bytes(whole)
    assert found
    assert all(str(sound / "000001") in line for line in found)


@given(st.data())
@settings(max_examples=60)
def test_a_changed_index_is_refused_or_tells_of_another_set(sound: Path, data: st.DataObject) -> None:
    content = bytearray((sound / "index.json").read_bytes())
    before = parsed_index(bytes(content), "i")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        after = parsed_index(bytes(content), "i")
    except ValueError:
        return
    if after.shards != before.shards:
        assert [line for shard in after.shards for line in shard_findings(sound, shard, hashes=True)]
