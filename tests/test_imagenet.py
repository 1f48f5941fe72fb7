"""ImageNet in all the forms in which it is distributed, written small but true to their formats."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from atdiff_core.data.image_files import picture
from atdiff_core.data.imagenet import ImageNet, imagenet
from atdiff_core.data.resize import MAX_PIXELS

WNIDS = {"n02085620": 3, "n01440764": 2, "n03000134": 1}
NAMES = {"n01440764": "tench, Tinca tinca", "n02085620": "Chihuahua", "n03000134": "chainlink fence"}
DEVKIT_IDS = {"n02085620": 1, "n03000134": 2, "n01440764": 3}
VAL_WNIDS = ["n03000134", "n01440764", "n02085620", "n01440764"]


def jpeg(number: int, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, format="JPEG")
    return stream.getvalue()


def train_pictures() -> dict[str, dict[str, bytes]]:
    return {
        wnid: {
            f"{wnid}_{10 * number + 3}.JPEG": jpeg(number, "CMYK" if number == 2 else "RGB") for number in range(count)
        }
        for wnid, count in WNIDS.items()
    }


def tar_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train")
    for wnid, pictures in train_pictures().items():
        (path / wnid).mkdir()
        for name, content in pictures.items():
            (path / wnid / name).write_bytes(content)
    (path / "n01440764" / "Thumbs.db").write_bytes(b"no picture")
    return path


@pytest.fixture(scope="module")
def official_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tars") / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_of({f"{wnid}.tar": tar_of(pictures) for wnid, pictures in train_pictures().items()}))
    return path


@pytest.fixture
def val(tmp_path: Path) -> Path:
    path = tmp_path / "val"
    path.mkdir()
    for number in range(4):
        (path / f"ILSVRC2012_val_0000000{number + 1}.JPEG").write_bytes(jpeg(number))
    return path


@pytest.fixture
def synset_words(tmp_path: Path) -> Path:
    path = tmp_path / "synset_words.txt"
    path.write_text("".join(f"{wnid} {name}\n" for wnid, name in NAMES.items()))
    return path


@pytest.fixture
def meta_mat(tmp_path: Path) -> Path:
    """As the development kit's: an array of structures, with inner nodes after the classes."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [
        (DEVKIT_IDS[wnid], wnid, name, 0) for wnid, name in sorted(NAMES.items(), key=lambda pair: DEVKIT_IDS[pair[0]])
    ]
    savemat(
        tmp_path / "meta.mat", {"synsets": np.array([*rows, (1001, "n00001740", "entity", 3)], dtype=kind)[:, None]}
    )
    return tmp_path / "meta.mat"


def labels_of(source: ImageNet) -> dict[str, str]:
    return {sample.key: source.classes[sample.label or 0].split(" ")[0] for sample in source}


class TestTrain:
    def test_classes_are_numbered_in_the_order_of_their_ids(self, folders: Path) -> None:
        source = imagenet(folders)
        assert source.classes == sorted(WNIDS)
        assert labels_of(source) == {
            name.removesuffix(".JPEG"): wnid for wnid, pictures in train_pictures().items() for name in pictures
        }

    def test_the_tar_of_tars_gives_what_the_folders_give(self, folders: Path, official_tar: Path) -> None:
        one, other = imagenet(folders), imagenet(official_tar)
        assert one.source_key == other.source_key
        for left, right in zip(one, other, strict=True):
            assert (left.key, left.label, left.captions) == (right.key, right.label, right.captions)
            assert np.array_equal(np.asarray(left.image), np.asarray(right.image))

    def test_synset_names_become_part_of_the_classes(self, folders: Path, synset_words: Path, meta_mat: Path) -> None:
        wanted = [f"{wnid} {NAMES[wnid]}" for wnid in sorted(NAMES)]
        assert imagenet(folders, synsets=synset_words).classes == wanted
        assert imagenet(folders, synsets=meta_mat).classes == wanted

    def test_tars_deeper_down_are_never_opened(self, tmp_path: Path) -> None:
        wnid, pictures = next(iter(train_pictures().items()))
        inner = tar_of({**pictures, f"{wnid}.tar": tar_of({"n00000000_1.JPEG": jpeg(0)})})
        path = tmp_path / "a.tar"
        path.write_bytes(tar_of({f"{wnid}.tar": inner}))
        assert [sample.key for sample in imagenet(path)] == sorted(name.removesuffix(".JPEG") for name in pictures)

    @pytest.mark.parametrize("kept", [100, 512, 700, 1500, 5000])
    def test_a_truncated_tar_is_an_error_with_the_offset(self, tmp_path: Path, official_tar: Path, kept: int) -> None:
        path = tmp_path / "cut.tar"
        path.write_bytes(official_tar.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"cut\.tar.*offset \d+"):
            imagenet(path)

    def test_damage_inside_an_inner_tar_names_it(self, tmp_path: Path, official_tar: Path) -> None:
        content = bytearray(official_tar.read_bytes())
        at = content.index(b"n02085620_13.JPEG")
        content[at] ^= 1
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar \(n02085620\.tar\), offset \d+: damaged header"):
            imagenet(tmp_path / "a.tar")

    def test_names_that_come_twice_are_refused(self, tmp_path: Path) -> None:
        for wnid in WNIDS:
            (tmp_path / wnid).mkdir()
            (tmp_path / wnid / "1.JPEG").write_bytes(jpeg(0))
        with pytest.raises(ValueError, match="two pictures are called 1, as ImageNet's never are"):
            imagenet(tmp_path)

    def test_folders_without_classes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no such folder or tar"):
            imagenet(tmp_path / "missing")
        with pytest.raises(ValueError, match="holds no <wnid>"):
            imagenet(tmp_path)


class TestVal:
    def lists(self, tmp_path: Path) -> dict[str, Path]:
        wnids, numbers, kaggle = (tmp_path / name for name in ("wnids.txt", "ground_truth.txt", "LOC_val_solution.csv"))
        wnids.write_text("\n".join(VAL_WNIDS) + "\n")
        numbers.write_text("".join(f"{DEVKIT_IDS[wnid]}\n" for wnid in VAL_WNIDS))
        rows = [f"ILSVRC2012_val_0000000{number + 1},{wnid} 1 2 3 4 " for number, wnid in enumerate(VAL_WNIDS)]
        kaggle.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
        return {"wnids": wnids, "numbers": numbers, "kaggle": kaggle}

    @pytest.mark.parametrize("kind", ["wnids", "numbers", "kaggle"])
    def test_every_kind_of_label_list_gives_the_same_labels(
        self, val: Path, tmp_path: Path, meta_mat: Path, kind: str
    ) -> None:
        source = imagenet(val, "val", labels=self.lists(tmp_path)[kind], synsets=meta_mat)
        assert list(labels_of(source).values()) == VAL_WNIDS

    def test_the_validation_tar_gives_what_the_folder_gives(self, val: Path, tmp_path: Path) -> None:
        path = tmp_path / "val.tar"
        path.write_bytes(tar_of({file.name: file.read_bytes() for file in sorted(val.iterdir(), reverse=True)}))
        labels = self.lists(tmp_path)["wnids"]
        one, other = imagenet(val, "val", labels=labels), imagenet(path, "val", labels=labels)
        assert one.source_key == other.source_key
        assert labels_of(one) == labels_of(other)

    def test_classes_are_those_of_the_synsets_even_where_none_is_shown(
        self, val: Path, tmp_path: Path, synset_words: Path
    ) -> None:
        for file in sorted(val.iterdir())[1:]:
            file.unlink()
        (tmp_path / "one.txt").write_text("n03000134\n")
        source = imagenet(val, "val", labels=tmp_path / "one.txt", synsets=synset_words)
        assert [sample.label for sample in source] == [2]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("n01440764\n", "1 labels for 4 pictures"),
            ("n01440764\nx\ny\nz\n", "must hold a WordNet id"),
            ("1\n2\n3\n9\n", "there is no class of number 9"),
            ("ImageId,PredictionString\nILSVRC2012_val_00000001,tench", "has no WordNet id, got 'tench'"),
            (
                "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4",
                "no label for ILSVRC2012_val_00000002",
            ),
            ("n01440764\n" * 3 + "n99999999\n", "does not name 1 classes"),
        ],
    )
    def test_label_lists_that_do_not_fit_are_refused(
        self, val: Path, tmp_path: Path, meta_mat: Path, text: str, message: str
    ) -> None:
        (tmp_path / "labels.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            imagenet(val, "val", labels=tmp_path / "labels.txt", synsets=meta_mat)

    def test_missing_and_broken_lists_are_told_with_the_way_out(self, val: Path, tmp_path: Path, folders: Path) -> None:
        with pytest.raises(ValueError, match="give the list of them with --labels"):
            imagenet(val, "val")
        with pytest.raises(ValueError, match=r"give the development kit's meta\.mat with --synsets"):
            imagenet(val, "val", labels=self.lists(tmp_path)["numbers"])
        with pytest.raises(ValueError, match="no such file"):
            imagenet(val, "val", labels=tmp_path / "missing")
        (tmp_path / "meta.mat").write_bytes(b"\x80\x04cos\nsystem\n" * 40)
        with pytest.raises(ValueError, match=r"not the meta\.mat"):
            imagenet(folders, synsets=tmp_path / "meta.mat")
        (tmp_path / "words.txt").write_text("tench\n")
        with pytest.raises(ValueError, match="must hold lines like"):
            imagenet(folders, synsets=tmp_path / "words.txt")


def test_a_picture_that_would_fill_the_memory_is_refused_before_decoding() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, format="PNG")
    with pytest.raises(ValueError, match="pixels are too many"):
        picture(stream.getvalue(), "bomb.png")
