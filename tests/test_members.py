"""Walking tars and the table of their members: what is whole is found, what is not is refused."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from atdiff_core.data.members import MemberTable
from atdiff_core.data.tar_walk import MAX_MEMBER_BYTES, tar_samples

SAMPLES = {f"{number:04d}": {"png": bytes([number]) * (number * 37), "cls": b"%d" % number} for number in range(12)}


def tar_of(samples: dict[str, dict[str, bytes]]) -> bytes:
    """What webdataset's own writer makes of some samples."""
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False, mtime=0) as tar:
        for key, members in samples.items():
            tar.write({"__key__": key, **members})
    return out.getvalue()


def plain_tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """Any members in any order; those given as headers have no data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            header = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return out.getvalue()


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def table_of(content: bytes) -> MemberTable:
    return MemberTable.of_stream(io.BytesIO(content), "a.tar")


WHOLE = tar_of(SAMPLES)
TABLE = table_of(WHOLE)
LAST_BYTE = int(max((TABLE.offsets[each] + TABLE.sizes[each]).max() for each in TABLE.extensions))


def read_back(content: bytes, table: MemberTable) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for row in range(len(table)):
        places = {extension: table.place(row, extension) for extension in table.extensions}
        found[table.key(row)] = {
            extension: content[place.offset : place.offset + place.size] for extension, place in places.items() if place
        }
    return found


class TestTable:
    def test_it_finds_every_member_that_webdataset_wrote(self) -> None:
        assert read_back(WHOLE, TABLE) == SAMPLES
        assert TABLE.rows == {key: row for row, key in enumerate(SAMPLES)}

    @given(
        st.dictionaries(
            st.text("abz019_-/", min_size=1, max_size=20).filter(lambda key: not key.endswith("/")),
            st.dictionaries(st.sampled_from(["jpg", "txt", "cls"]), st.binary(max_size=1200)).filter(len),
            max_size=8,
        )
    )
    @settings(deadline=None, max_examples=30)
    def test_samples_come_back_as_webdataset_groups_them(self, samples: dict[str, dict[str, bytes]]) -> None:
        content = tar_of(samples)
        wanted = {key: members for key, members in samples.items() if "jpg" in members}
        assert read_back(content, table_of(content)) == wanted

    def test_a_table_survives_its_file(self) -> None:
        assert MemberTable.from_bytes(TABLE.to_bytes(), "t", tar_bytes=len(WHOLE)) == TABLE
        empty = table_of(tar_of({}))
        assert len(MemberTable.from_bytes(empty.to_bytes(), "t", tar_bytes=10240)) == len(empty) == 0

    def test_bytes_are_checked_against_those_that_were_indexed(self) -> None:
        row = TABLE.rows["0003"]
        assert TABLE.is_intact(row, "png", SAMPLES["0003"]["png"])
        assert not TABLE.is_intact(row, "png", SAMPLES["0004"]["png"])
        assert not TABLE.is_intact(row, "txt", b"")

    def test_names_group_and_choose_but_never_lead_anywhere(self) -> None:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        content = plain_tar(link, ("../../etc/x.JPG", b"a"), ("/abs.pyd", b"evil"), ("b.png", b"b"), ("c.json", b"{}"))
        assert read_back(content, table_of(content)) == {"../../etc/x": {"jpg": b"a"}, "b": {"png": b"b"}}

    def test_a_key_that_comes_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"a\.tar, offset 2048: the sample 1 comes twice"):
            table_of(plain_tar(("1.png", b"a"), ("2.png", b"b"), ("1.cls", b"0")))
        with pytest.raises(ValueError, match=r"offset 1024: 1\.png comes twice"):
            table_of(plain_tar(("1.png", b"a"), ("1.PNG", b"b")))


class TestDamagedTars:
    @pytest.mark.parametrize(
        "kept", [0, 1, 511, 512, 513, 1023, *range(1024, LAST_BYTE, 1700), LAST_BYTE, LAST_BYTE + 1]
    )
    def test_a_tar_cut_off_anywhere_is_refused(self, kept: int) -> None:
        with pytest.raises(ValueError, match=r"a\.tar.* offset \d+"):
            table_of(WHOLE[:kept])

    def test_a_changed_header_is_refused_at_its_offset(self) -> None:
        """Python's ``tarfile`` takes it for the end, and loses the rest without a word."""
        offset = TABLE.offsets["png"][5] - tarfile.BLOCKSIZE
        for at in (0, 40, 124, 148, 156, 257, 500):
            damaged = bytearray(WHOLE)
            damaged[offset + at] ^= 0x11
            with pytest.raises(ValueError, match=rf"a\.tar, offset {offset}: damaged header"):
                table_of(bytes(damaged))

    @given(at=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
    @settings(deadline=None, max_examples=120)
    def test_one_flipped_bit_anywhere_is_refused_or_changes_one_member(self, at: int, bit: int) -> None:
        damaged = bytearray(WHOLE)
        damaged[at] ^= 1 << bit
        try:
            table = table_of(bytes(damaged))
        except ValueError:
            return
        assert table.rows == TABLE.rows
        wrong = [
            (row, extension)
            for row in range(len(table))
            for extension in table.extensions
            if not TABLE.is_intact(row, extension, read_back(bytes(damaged), table)[table.key(row)][extension])
        ]
        inside = [
            (row, extension)
            for row in range(len(TABLE))
            for extension in TABLE.extensions
            if (place := TABLE.place(row, extension)) and place.offset <= at < place.offset + place.size
        ]
        assert wrong == inside

    @given(st.binary(max_size=3000))
    @settings(deadline=None, max_examples=60)
    def test_bytes_that_are_no_tar_are_refused(self, content: bytes) -> None:
        if content.strip(b"\0"):
            with pytest.raises(ValueError, match=r"a\.tar"):
                table_of(content)

    @pytest.mark.parametrize(
        "size",
        [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000777\0", b"77777777777\0", struct.pack(">BxxxQ", 0x80, 2**63)],
    )
    def test_impossible_sizes_in_a_header_with_a_right_checksum_are_refused(self, size: bytes) -> None:
        header = bytearray(WHOLE[:512])
        header[124:136] = size
        with pytest.raises(ValueError, match=r"a\.tar"):
            table_of(with_checksum(header) + WHOLE[512:])

    def test_a_member_larger_than_any_picture_is_refused_without_reading_it(self, tmp_path: Path) -> None:
        file = tmp_path / "a.tar"
        header = tarfile.TarInfo("a.png")
        header.size = MAX_MEMBER_BYTES + 1
        with file.open("wb") as stream:
            stream.write(header.tobuf())
            stream.seek(header.size + 511 + 10240)  # A hole: it takes no room on the disk.
            stream.write(b"\0")
        with pytest.raises(ValueError, match=r"a\.png has \d+ bytes, at most"):
            MemberTable.of_tar(file)

    def test_headers_that_nest_without_end_are_refused(self) -> None:
        long_name = tarfile.TarInfo("././@LongLink")
        long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 512
        one = long_name.tobuf() + b"x" * 512
        with pytest.raises(ValueError, match=r"a\.tar"):
            tar_samples(io.BytesIO(one * 3000 + b"\0" * 10240), "a.tar")

    def test_a_sparse_file_is_refused(self) -> None:
        header = tarfile.TarInfo("a.png")
        header.type = tarfile.GNUTYPE_SPARSE
        with pytest.raises(ValueError, match="sparse"):
            table_of(plain_tar(header))


def tensors() -> dict[str, np.ndarray]:
    return {name: tensor.copy() for name, tensor in load(TABLE.to_bytes()).items()}


class TestDamagedTables:
    def refused(self, content: bytes) -> str:
        with pytest.raises(ValueError, match=r"^t: ") as caught:
            MemberTable.from_bytes(content, "t", tar_bytes=len(WHOLE))
        return str(caught.value)

    @pytest.mark.parametrize(
        ("name", "row", "value"),
        [
            ("offset_png", 3, len(WHOLE) - 5),
            ("offset_png", 3, -2),
            ("offset_png", 3, 2**63 - 1),
            ("offset_png", 3, -1),
            ("size_png", 3, 2**63 - 1),
            ("size_png", 3, -1),
            ("size_cls", 3, len(WHOLE)),
            ("crc32_png", 3, 2**32),
            ("key_ends", 3, 3),
            ("key_ends", 11, 47),
            ("key_ends", 0, -4),
            ("keys", 5, 0xFF),
            ("keys", 7, ord("0")),
        ],
    )
    def test_numbers_that_point_nowhere_are_refused(self, name: str, row: int, value: int) -> None:
        changed = tensors()
        changed[name][row] = value
        assert "damaged table of members" in self.refused(save(changed))

    @pytest.mark.parametrize("name", sorted(tensors()))
    def test_a_column_that_is_missing_short_or_of_another_kind_is_refused(self, name: str) -> None:
        self.refused(save({key: tensor for key, tensor in tensors().items() if key != name}))
        self.refused(save(tensors() | {name: tensors()[name][:-1].copy()}))
        self.refused(save(tensors() | {name: tensors()[name].astype(np.float32)}))
        self.refused(save(tensors() | {name: tensors()[name][None]}))

    def test_unknown_columns_are_refused(self) -> None:
        self.refused(save(tensors() | {"offset_pickle": tensors()["offset_png"]}))

    def test_a_sample_without_picture_is_refused(self) -> None:
        changed = tensors()
        for kind in ("offset", "size", "crc32"):
            changed[f"{kind}_png"][4] = -1
        assert "neither picture nor latent" in self.refused(save(changed))

    @given(at=st.integers(0, len(TABLE.to_bytes()) - 1), value=st.integers(0, 255))
    @settings(deadline=None, max_examples=120)
    def test_one_changed_byte_is_refused_or_stays_inside_the_tar(self, at: int, value: int) -> None:
        damaged = bytearray(TABLE.to_bytes())
        damaged[at] = value
        try:
            table = MemberTable.from_bytes(bytes(damaged), "t", tar_bytes=len(WHOLE))
        except ValueError:
            return
        for row in range(len(table)):
            for extension in table.extensions:
                if place := table.place(row, extension):
                    assert 0 < place.offset <= place.offset + place.size <= len(WHOLE)

    @given(st.binary(max_size=200))
    @settings(deadline=None, max_examples=60)
    def test_bytes_that_are_no_table_are_refused(self, content: bytes) -> None:
        self.refused(content)

    def test_a_missing_table_is_named_with_the_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"x\.members\.safetensors: .*atdiff shards index"):
            MemberTable.load(tmp_path / "x.members.safetensors", tar_bytes=1)
