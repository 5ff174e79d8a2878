"""Folders of pictures: the three layouts, and what is wrong in them named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorry.errors import DataError, SettingsError
from lorry.training.buckets import fit, nearest_size, sizes
from lorry.training.data import open_picture, read_data
from lorry.training.order import Order
from lorry.training.settings import Settings
from training.runs import Listening, picture, run


def test_a_plain_folder_has_a_text_for_each_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1, caption="a red\n thing")
    picture(tmp_path / "b.jpg", 2, caption="another")
    found = read_data(tmp_path).pictures
    assert [(p.path.name, p.caption, p.repeats) for p in found] == [
        ("a.png", "a red thing", 1),
        ("b.jpg", "another", 1),
    ]


def test_kohyas_folders_say_how_often_and_what(tmp_path: Path) -> None:
    picture(tmp_path / "10_my_cat" / "a.png", 1, caption=None)
    picture(tmp_path / "3_dog" / "b.png", 2, caption="a dog, sitting")
    found = read_data(tmp_path).pictures
    assert [(p.caption, p.repeats, p.group) for p in found] == [
        ("my cat", 10, "10_my_cat"),
        ("a dog, sitting", 3, "3_dog"),
    ]


def test_a_list_of_metadata_goes_before_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1, caption="not this")
    picture(tmp_path / "b.png", 2)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "this"}) + "\n\n")
    assert [(p.path.name, p.caption) for p in read_data(tmp_path).pictures] == [("a.png", "this")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata.jsonl, line 1: expected a JSON object"),
        ('{"text": "no file"}', r"line 1: expected a JSON object with `file_name`"),
        ('{"file_name": "../x.png"}', r"line 1: '../x.png' is no file inside"),
        ('{"file_name": "a\\u0000.png"}', r"line 1: 'a\\x00.png' is no file inside"),
        ('{"file_name": "a.png", "text": 5}', r"line 1: the caption is no text: 5"),
        ('{"file_name": "a.png", "text": "\\ud83d"}', r"line 1: the caption is no text: '\\ud83d'"),
    ],
)
def test_a_wrong_line_of_metadata_is_named(line: str, message: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_data(tmp_path)


def test_broken_empty_and_huge_pictures_are_named_and_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "good.png", 1)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    huge = Image.new("1", (20_000, 10_000))
    huge.save(tmp_path / "huge.png")
    found = read_data(tmp_path)
    assert [p.path.name for p in found.pictures] == ["good.png"]
    said = "\n".join(found.notes)
    assert "empty.png: cannot be read as a picture" in said
    assert "text.png: cannot be read as a picture" in said
    assert "huge.png: cannot be read as a picture: Image size (200000000 pixels) exceeds limit" in said


def test_a_picture_whose_notes_of_the_camera_are_broken_is_named_and_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "good.png", 1)
    orientation = struct.pack("<HHI4s", 0x0112, 2, 4, b"up\0\0")  # as a text, where a number is due
    notes = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + orientation + bytes(4)
    Image.new("RGB", (16, 16)).save(tmp_path / "odd.webp", exif=notes)
    found = read_data(tmp_path)
    assert [p.path.name for p in found.pictures] == ["good.png"]
    assert found.notes[0].startswith("odd.webp: cannot be read as a picture: ")


def test_a_picture_that_is_cut_off_is_found_when_it_is_encoded(sd: Path, tmp_path: Path) -> None:
    picture(tmp_path / "data" / "good.png", 1)
    cut = picture(tmp_path / "data" / "cut.png", 2, size=(64, 64))
    cut.write_bytes(cut.read_bytes()[:3000])
    listening = Listening()
    assert run(tmp_path / "data", sd, tmp_path / "out", listening, steps=1).finished
    assert any("cut.png: cannot be read as a picture" in note for note in listening.notes)


def test_a_picture_without_a_caption_is_named_and_takes_the_trigger(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1, caption=None)
    assert read_data(tmp_path).notes == ("a.png: has no caption, and is trained without words.",)
    with_trigger = read_data(tmp_path, "zork")
    assert with_trigger.notes == ()
    assert with_trigger.pictures[0].caption == "zork"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("chalk, a cat", "chalk, a cat"),
        ("chalk", "chalk"),
        ("chalkboard", "chalk, chalkboard"),
        ("a cat in chalk", "chalk, a cat in chalk"),
    ],
)
def test_the_trigger_stands_as_a_word_in_front_of_every_caption(
    caption: str, expected: str, tmp_path: Path
) -> None:
    picture(tmp_path / "a.png", 1, caption=caption)
    assert read_data(tmp_path, "chalk").pictures[0].caption == expected


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl"])
def test_a_text_that_is_not_utf_8_is_named_and_refused(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1, caption=None)
    (tmp_path / name).write_bytes('{"file_name": "a.png", "text": "Löwe"}'.encode("latin-1"))
    with pytest.raises(DataError, match=f"{name}: is no text in UTF-8"):
        read_data(tmp_path)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert open_picture(tmp_path / "a.gif").getpixel((8, 8)) == (255, 0, 0)


def test_a_picture_smaller_than_the_training_size_is_enlarged() -> None:
    assert fit(Image.new("RGB", (5, 4), "red"), (24, 16)).image.size == (24, 16)


def test_pictures_of_rarer_kinds_are_read_and_files_of_no_kind_that_is_read_are_named(tmp_path: Path) -> None:
    for name, kind in (("a.jfif", "JPEG"), ("b.AVIF", "AVIF"), ("c.jpe", "JPEG")):
        Image.new("RGB", (16, 16)).save(tmp_path / name, kind)
        (tmp_path / name).with_suffix(".txt").write_text("a thing")
    for name in ("d.heic", "e.psd", "f.mp4", "g.raw", "h.svg", "metadata.csv", ".hidden", "latents.npz"):
        (tmp_path / name).write_bytes(b"no picture")
    found = read_data(tmp_path)
    assert [p.path.name for p in found.pictures] == ["a.jfif", "b.AVIF", "c.jpe"]
    heic, others = sorted(found.notes)
    assert heic.startswith("d.heic: cannot be read as a picture: ")
    assert others == "e.psd, f.mp4, g.raw and 1 more: of a kind that is not read as a picture. Skipped."


def test_files_of_no_kind_that_is_read_are_named_in_kohyas_folders_too(tmp_path: Path) -> None:
    picture(tmp_path / "10_cat" / "a.png", 1)
    (tmp_path / "10_cat" / "b.psd").write_bytes(b"no picture")
    assert read_data(tmp_path).notes == ("b.psd: of a kind that is not read as a picture. Skipped.",)


def test_folders_shown_no_times_and_pictures_beside_folders_are_named_and_skipped(tmp_path: Path) -> None:
    for name in ("2_thing/a.png", "0_off/b.png", "c.png", "d.png"):
        picture(tmp_path / name, 1)
    found = read_data(tmp_path)
    assert [p.path.name for p in found.pictures] == ["a.png"]
    assert found.notes == (
        "c.png: stands beside 0_off, and only folders with a number are read. Skipped, and 1 more.",
        "0_off: is to be shown 0 times. Skipped.",
    )
    (tmp_path / "2_thing").rename(tmp_path / "00_thing")
    with pytest.raises(DataError, match="00_thing: is to be shown 0 times"):
        read_data(tmp_path)


def test_captions_of_a_list_may_hold_what_others_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    row = '{"file_name": "a.png", "text": "one\u2028two\u0085three"}\r\n'
    (tmp_path / "metadata.jsonl").write_bytes(row.encode())
    assert [p.caption for p in read_data(tmp_path).pictures] == ["one two three"]


@pytest.mark.parametrize("make", ["nothing", "no folder", "texts only"])
def test_nothing_to_train_on_is_refused(make: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    if make != "no folder":
        folder.mkdir()
    if make == "texts only":
        (folder / "a.txt").write_text("a caption")
    with pytest.raises(
        DataError, match="is no folder" if make == "no folder" else "There is no picture to train on"
    ):
        read_data(folder)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_every_mode_of_a_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "F") else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 65535, dtype=np.uint16)).save(path)
    elif mode == "F":
        Image.fromarray(np.full((4, 6), 255, dtype=np.float32)).save(path)
    else:
        Image.new("RGB", (6, 4), "white").convert(mode).save(path)
    opened = open_picture(path)
    assert (opened.mode, opened.size) == ("RGB", (6, 4))
    assert np.asarray(opened).min() >= 254, "white stays white"


def test_transparency_is_white_and_turned_pictures_are_upright(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert np.asarray(open_picture(tmp_path / "clear.png")).min() == 255
    turned = Image.new("RGB", (8, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (4, 8)
    (tmp_path / "clear.png").unlink()
    assert read_data(tmp_path).pictures[0].size == (4, 8)


def test_sizes_are_multiples_of_the_step_and_never_more_pixels_than_asked() -> None:
    found = sizes(512, 64)
    assert (512, 512) in found
    assert (384, 640) in found
    assert (640, 384) in found
    assert all(w % 64 == h % 64 == 0 and w * h <= 512 * 512 for w, h in found)


@pytest.mark.parametrize(
    ("size", "expected"), [((500, 500), (512, 512)), ((300, 500), (384, 640)), ((5000, 100), (1024, 256))]
)
def test_a_picture_goes_to_the_size_of_its_shape_and_covers_it(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert nearest_size(size, 512, 64) == expected
    fitted = fit(Image.new("RGB", size), expected)
    assert fitted.image.size == expected
    assert fitted.original == size


def test_an_epoch_shows_every_picture_and_no_batch_mixes_sizes() -> None:
    buckets = {(8, 8): [0, 1, 2, 3, 4], (8, 16): [5, 6, 6]}
    order = Order(buckets, batch=2, seed=3)
    assert order.steps_per_epoch == 5
    epochs = [[order.batch(e * 5 + s) for s in range(5)] for e in range(2)]
    for epoch in epochs:
        assert {n for batch in epoch for n in batch} == {0, 1, 2, 3, 4, 5, 6}
        assert all(len({n > 4 for n in batch}) == 1 and len(batch) == 2 for batch in epoch)
    assert epochs[0] != epochs[1]
    assert Order(buckets, 2, 3).batch(7) == order.batch(7)


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    settings = Settings().changed(
        {"data": "pictures", "alpha": 2, "sample_prompts": ["a", "b"], "flip": True}
    )
    (tmp_path / "s.toml").write_text(settings.written())
    assert Settings.read(tmp_path / "s.toml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nstepz = 3", "There is no setting 'stepz'. Did you mean 'steps'"),
        ("[run]\nrank = 3", r"`rank` stands in \[run\]: it belongs in \[adapter\]"),
        ('[adapter]\nrank = "3"', "`rank`: expected int, got '3'"),
        ("[adapter]\nrank = true", "`rank`: expected int, got True"),
        ('[adapter]\nfamily = "lor"', "`family`: expected one of lora, .* got 'lor'"),
        ("[run]\nsteps = 0", "`steps`: expected at least 1, got 0"),
        ("[adapter]\nconv_rank = 0", "`conv_rank`: expected more than 0, got 0"),
        ("[adapter]\nalpha = 0", "`alpha`: expected more than 0, got 0"),
        ("[optimiser]\nbeta2 = 1.0", "`beta2`: expected a number from 0 to below 1, got 1.0"),
        ("[optimiser]\nrate = nan", "`rate`: expected a finite number, got nan"),
        ("[loss]\nnoise_offset = -0.1", "`noise_offset`: expected 0 or more, got -0.1"),
        ("[optimiser]\ntext_rate = -0.1", "`text_rate`: expected 0 or more, got -0.1"),
        ('[run]\nname = "a/b"', "`name`: expected the name of a file without its ending, got 'a/b'"),
        ('[run]\nname = ".."', "`name`: expected the name of a file without its ending, got '..'"),
        ('[data]\nprior = "a"\nprior_prompt = "b"', "`prior` and `prior_prompt` at once"),
        ("steps = 3", "stands outside of the tables"),
        ("stepz = 3", "There is no setting 'stepz'. Did you mean 'steps'"),
        ("[run", "is no TOML"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.read(path)
