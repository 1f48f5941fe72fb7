"""Whatever happens to a set, its reader gives the right samples or one clear error, never a wrong sample."""

import io
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from atdiff_core.data.contents import Latents
from atdiff_core.data.index import INDEX_FILE, Shard, parsed_index
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import open_shards
from atdiff_core.data.writing import write_shards

NUM_SAMPLES = 24
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 noisy images of 8 px in two shards."""
    out = tmp_path_factory.mktemp("set")
    images = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 8, 8), dtype=np.uint8)
    source = ArraySource("noise", "CC0", ["a", "b", "c"], images, np.arange(NUM_SAMPLES, dtype=np.uint8) % 3)
    assert list(write_shards(source, out, [8], image_channels=1, samples_per_shard=NUM_SAMPLES // 2))
    return out / "8px"


@pytest.fixture(scope="module")
def truth(written: Path) -> dict[str, tuple[bytes, int]]:
    found = read(written)
    assert len(found) == NUM_SAMPLES
    return found


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "8px"))


def read(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Pixels and label of every sample, by key."""
    batch = next(open_shards(folder).batches(seed=0, batch_size=NUM_SAMPLES))
    contents = [content.numpy().tobytes() for content in batch.content]
    return dict(zip(batch.keys, zip(contents, batch.labels.tolist(), strict=True), strict=True))


def outcome(folder: Path) -> tuple[dict[str, tuple[bytes, int]], str]:
    """What was read, or the message of the error."""
    try:
        return read(folder), ""
    except ValueError as error:
        return {}, str(error)


def reindexed(folder: Path, tar: Path) -> None:
    """Renew the table and the index's entry of a tar, as if it had been made as it is."""
    table = MemberTable.of_tar(tar)
    members_file(tar).write_bytes(table.to_bytes())
    replace_entry(folder, tar, len(table))


def replace_entry(folder: Path, tar: Path, samples: int) -> None:
    index = parsed_index((folder / INDEX_FILE).read_bytes(), INDEX_FILE)
    shards = [Shard.of(tar, samples=samples) if shard.file == tar.name else shard for shard in index.shards]
    (folder / INDEX_FILE).write_text(index.but(shards=tuple(shards)).model_dump_json())


def repacked(tar: Path, change: Callable[[Members], None]) -> None:
    with tarfile.open(tar) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(tar, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def first_key(tar: Path) -> str:
    with tarfile.open(tar) as archive:
        return archive.getnames()[0].split(".")[0]


def picture(size: int = 8, mode: str = "L", kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (size, size)).save(out, format=kind)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 50,000 pixels wide and high."""
    content = bytearray(picture())
    header = content[12:16] + (50_000).to_bytes(4, "big") * 2 + content[24:29]
    content[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_byte_never_gives_a_wrong_sample(
    seed: int, folder: Path, truth: dict[str, tuple[bytes, int]]
) -> None:
    """Anywhere in the tar: in a member it is an error; headers and padding are not even read."""
    draw = random.Random(seed)
    tar = folder / f"00000{seed % 2}.tar"
    content = bytearray(tar.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    tar.write_bytes(content)
    table = MemberTable.load(members_file(tar), tar_bytes=len(content))
    in_member = any(
        offsets[row] <= place < offsets[row] + table.sizes[each][row]
        for each, offsets in table.offsets.items()
        for row in range(len(table))
    )
    if in_member:
        with pytest.raises(ValueError, match=rf"{tar.name}, sample \w+, offset \d+: not the bytes that were indexed"):
            read(folder)
    else:
        assert read(folder) == truth


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("honest", [True, False], ids=["size-known", "size-forged"])
def test_a_truncated_tar_is_named(seed: int, honest: bool, folder: Path) -> None:
    """Also where the index agrees with the shorter size, so that only the structure tells."""
    tar = folder / "000001.tar"
    content = tar.read_bytes()
    last_member = content.rindex(b"IEND")
    tar.write_bytes(content[: random.Random(seed).randrange(last_member)])
    if not honest:
        replace_entry(folder, tar, NUM_SAMPLES // 2)
    with pytest.raises(ValueError, match=r"000001\.(tar: has|members\.safetensors: damaged table|tar, )"):
        read(folder)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_table_is_named(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    file = members_file(folder / "000000.tar")
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content[: len(content) - seed % 3])
    with pytest.raises(ValueError, match=r"000000\.members\.safetensors: not the table that was indexed"):
        read(folder)


def shifted(table: MemberTable) -> None:
    table.offsets["png"][3] += 1


def swapped(table: MemberTable) -> None:
    for columns in (table.offsets, table.sizes):
        columns["png"][[0, 1]] = columns["png"][[1, 0]]


def beyond(table: MemberTable) -> None:
    table.offsets["png"][2] = 2**62


def huge(table: MemberTable) -> None:
    table.sizes["png"][2] = 2**62


def negative(table: MemberTable) -> None:
    table.sizes["png"][2] = -5


def without_picture(table: MemberTable) -> None:
    for columns in (table.offsets, table.sizes, table.crc32s):
        columns["png"][4] = -1


def without_label(table: MemberTable) -> None:
    for columns in (table.offsets, table.sizes, table.crc32s):
        columns["cls"][4] = -1


@pytest.mark.parametrize("forge", [shifted, swapped, beyond, huge, negative, without_picture, without_label])
def test_a_forged_table_is_refused(forge: Callable[[MemberTable], None], folder: Path) -> None:
    """Even where its sha256 in the index was forged too."""
    tar = folder / "000000.tar"
    loaded = MemberTable.load(members_file(tar), tar_bytes=tar.stat().st_size)
    columns = ({each: column.copy() for each, column in part.items()} for part in (loaded.offsets, loaded.sizes))
    offsets, sizes = columns
    crc32s = {each: column.copy() for each, column in loaded.crc32s.items()}
    table = MemberTable(offsets, sizes, crc32s, loaded.key_blob, loaded.key_ends)
    forge(table)
    members_file(tar).write_bytes(table.to_bytes())
    replace_entry(folder, tar, len(table))
    with pytest.raises(ValueError, match=r"000000\."):
        read(folder)


PICTURES = {
    "no picture": (b"no picture", "not a readable PNG"),
    "empty": (b"", "not a readable PNG"),
    "cut off": (picture()[:45], "not a readable PNG"),
    "another size": (picture(9), r"width, height and mode are \(9, 9, 'L'\)"),
    "another mode": (picture(mode="RGB"), r"width, height and mode are \(8, 8, 'RGB'\)"),
    "palette": (picture(mode="P"), r"width, height and mode are \(8, 8, 'P'\)"),
    "a GIF": (picture(kind="GIF"), "not a readable PNG"),
    "a JPEG": (picture(kind="JPEG"), "not a readable PNG"),
    "a TIFF": (picture(kind="TIFF"), "not a readable PNG"),
    "a bomb": (bomb(), "not a readable PNG|width, height and mode are"),
    "a pickle": (b"cos\nsystem\n(S'touch /tmp/owned'\ntR.", "not a readable PNG"),
    "PostScript": (b"%!PS-Adobe-3.0\nshowpage", "not a readable PNG"),
}
LABELS = [b"3", b"-1", b"1" * 9999, b"", b"one", b"0.0", b"\xff", b" 1", b"1\n2", "²".encode()]


@pytest.mark.parametrize("name", PICTURES)
def test_a_member_that_is_no_picture_of_the_set_is_named(name: str, folder: Path) -> None:
    content, message = PICTURES[name]
    tar = folder / "000000.tar"
    key = first_key(tar)
    repacked(tar, lambda members: members.update({f"{key}.png": content}))
    reindexed(folder, tar)
    with pytest.raises(ValueError, match=rf"000000\.tar, sample {key}, offset \d+: ({message})"):
        read(folder)


@pytest.mark.parametrize("seed", range(20))
def test_a_picture_of_random_damage_is_named_or_right(
    seed: int, folder: Path, truth: dict[str, tuple[bytes, int]]
) -> None:
    """Indexed after the damage, so that the decoder alone can tell."""
    draw = random.Random(seed)
    tar = folder / "000000.tar"
    key = first_key(tar)

    def damage(members: Members) -> None:
        content = bytearray(members[f"{key}.png"])
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        members[f"{key}.png"] = bytes(content[: draw.randrange(20, len(content) + 1)])

    repacked(tar, damage)
    reindexed(folder, tar)
    found, message = outcome(folder)
    if message:
        assert f"000000.tar, sample {key}, offset" in message
    else:
        del found[key]
        assert found == {other: sample for other, sample in truth.items() if other != key}


@pytest.mark.parametrize("label", LABELS)
def test_a_label_that_is_no_class_is_named(label: bytes, folder: Path) -> None:
    tar = folder / "000001.tar"
    key = first_key(tar)
    repacked(tar, lambda members: members.update({f"{key}.cls": label}))
    reindexed(folder, tar)
    with pytest.raises(ValueError, match=rf"000001\.tar, sample {key}, offset \d+: \.cls must be the number of"):
        read(folder)


def test_members_of_other_kinds_are_never_looked_at(folder: Path, truth: dict[str, tuple[bytes, int]]) -> None:
    tar = folder / "000000.tar"
    evil = {
        f"{first_key(tar)}.pyd": b"cos\nsystem\n(S'touch owned'\ntR.",
        "../../outside.pickle": b"\x80",
        "/etc/passwd.npy": b"",
    }
    repacked(tar, lambda members: members.update(evil))
    reindexed(folder, tar)
    assert read(folder) == truth


@pytest.mark.parametrize(
    "address", ["pipe:cat x", "pipe://cat", "file::simplecache::s3://x", "ftp://x/y", "zip://a::s3://b"]
)
def test_addresses_that_run_or_chain_something_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="shards must be a local folder or an address of http://"):
        open_shards(address)


def latent_set(folder: Path, content: bytes) -> None:
    """Turn the first shard into one of latents ``[4, 2, 2]``, the first of which is given."""
    tar = folder / "000000.tar"
    good = save({"latent": torch.zeros(4, 2, 2)})
    with tarfile.open(tar, "w") as archive:
        for number, member in enumerate([content, good]):
            header = tarfile.TarInfo(f"{number}.safetensors")
            header.size = len(member)
            archive.addfile(header, io.BytesIO(member))
    members_file(tar).write_bytes(MemberTable.of_tar(tar).to_bytes())
    latents = Latents(autoencoder="a", autoencoder_key="b", channels=4, side=2, scaling=1.0, shift=0.0, dtype="float32")
    index = parsed_index((folder / INDEX_FILE).read_bytes(), INDEX_FILE)
    index = index.but(image_formats=(), latents=latents, classes=(), shards=(Shard.of(tar, samples=2),))
    (folder / INDEX_FILE).write_text(index.model_dump_json())


LATENTS = [
    b"",
    b"\xff" * 100,
    (2**60).to_bytes(8, "little") + b"{}",
    save({"latent": torch.zeros(4, 2, 3)}),
    save({"latent": torch.zeros(4, 2, 2, dtype=torch.int64)}),
    save({"other": torch.zeros(4, 2, 2)}),
    save({"latent": torch.full((4, 2, 2), float("nan"))}),
    save({"latent": torch.zeros(4, 2, 2)})[:-1],
]


@pytest.mark.parametrize("content", LATENTS)
def test_a_latent_that_is_none_is_named(content: bytes, folder: Path) -> None:
    latent_set(folder, content)
    with pytest.raises(ValueError, match=r"000000\.tar, sample 0, offset \d+: "):
        next(open_shards(folder).batches(seed=0, batch_size=2))


def test_latents_are_read_as_they_are(folder: Path) -> None:
    latent = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))
    latent_set(folder, save({"latent": latent.bfloat16()}))
    shards = open_shards(folder)
    batch = next(shards.batches(seed=0, batch_size=2))
    assert (shards.resolution, shards.image_channels) == (2, 4)
    assert torch.equal(batch.images[batch.keys.index("0")], latent.bfloat16().float())
