"""The tiny world: the same pictures everywhere, prompts that tell the truth, styles that differ, and kind errors."""

import hashlib
import inspect
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylemoments.world import (
    HANDS,
    HELD_OUT,
    HELD_OUT_HAND,
    NOWHERE,
    OBJECTS,
    PLACES,
    PLAIN,
    STYLES,
    SUBJECT_NOUNS,
    Palette,
    World,
    prompt,
    raster,
    stylize_picture,
)
from stylemoments.world.drawings import SUBJECT_HANDS, drawing, pose
from stylemoments.world.styles import Picture

ROOT = Path(__file__).parents[1]
NAMED = [words for words in STYLES if words != PLAIN]


def random(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def square(color=(0.8, 0.3, 0.2), scene=None) -> Picture:
    """A square of 32 pixels in the middle of 64."""
    alpha = np.zeros((64, 64), np.float32)
    alpha[16:48, 16:48] = 1
    return Picture(np.broadcast_to(np.float32(color), (64, 64, 3)), alpha, scene)


def cat() -> Picture:
    posed = pose(drawing("cat", "noto", 64), scale=0.9, down=0, right=0, turn=0)
    return Picture(posed[..., :3], posed[..., 3])


def draw(words: str, picture: Picture, *, hue: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.clip(STYLES[words](picture, Palette(hue), random(seed)), 0, 1)


# ------------------------------------------------------------------------------------- the same everywhere


def digest(images: np.ndarray) -> str:
    return hashlib.sha256((images * 255).round().astype(np.uint8).tobytes()).hexdigest()[:16]


# Exact, on purpose: a model's card promises the pictures it was trained on.
CHECKSUMS = {
    "plain": "c8696d90bd28a8c8",
    "papercut art": "509c46628b2d3b5d",
    "watercolor painting": "a04ee91d49b6c241",
    "line drawing": "a5c1eaf044662237",
    "pixel art": "20ccbc2aa64d7314",
    "neon light": "58f8682b245f1305",
    "pop art": "2a34a42292b19c63",
    "crayon drawing": "dab02bc0c69f09cd",
    "blueprint": "c933eda1637619c3",
    "in the snow": "09d00944326be60c",
    "on the beach": "d95e6e1da86e226b",
    "in the forest": "21168a1580003be5",
    "in the city": "dde16d753719757a",
    "at night": "67b794bdd53be873",
    "in the desert": "ec735c462085a31d",
    "under water": "497b2d2a49709475",
}


@pytest.mark.parametrize("words", CHECKSUMS)
def test_checksum(words):
    option = "style" if words in STYLES else "place"
    sample = World(7).sample(24, **{option: words})
    assert digest(sample.images) == CHECKSUMS[words], (
        "the pictures of the tiny world have changed. If you meant to change them, copy the new checksum and say in "
        "CHANGELOG.md that models trained on the old world need training again; if not, see raster.py on exact steps"
    )


def test_picture_depends_on_seed_and_number_only():
    many, few = World(3).sample(12), World(3).sample(5, start=7)
    np.testing.assert_array_equal(many.images[7:], few.images)
    assert many.prompts[7:] == few.prompts
    assert not np.array_equal(World(4).sample(5, start=7).images, few.images)


def test_fixing_the_style_keeps_the_rest():
    neon, paper = (World(3).sample(6, style=style) for style in ("neon light", "papercut art"))
    assert (neon.objects, neon.hands, neon.places) == (paper.objects, paper.hands, paper.places)
    np.testing.assert_array_equal(neon.hues, paper.hues)


@pytest.mark.parametrize("words", STYLES)
def test_styles_stay_in_float32(words):
    scene = PLACES["at night"](64, Palette(0.2), random(1))
    for picture in (square(), square(scene=scene)):
        assert STYLES[words](picture, Palette(0.2), random(0)).dtype == np.float32, "float64 crept in: see raster.py"


@pytest.mark.parametrize("words", PLACES)
def test_places_are_float32_colors(words):
    scene = PLACES[words](64, Palette(0.2), random(0))
    assert scene.dtype == np.float32 and scene.shape == (64, 64, 3)
    assert 0 <= scene.min() and scene.max() <= 1


# ------------------------------------------------------------------------------------- samples


@pytest.fixture(scope="module")
def sample():
    return World(0).sample(400)


def test_images(sample):
    assert sample.images.shape == (400, 3, 64, 64) and sample.images.dtype == np.float32
    assert sample.images.flags.c_contiguous
    np.testing.assert_array_equal(sample.images, (sample.images * 255).round().astype(np.uint8) / np.float32(255))
    assert sample.images.min() == 0 and sample.images.max() == 1
    assert sample.images.std((1, 2, 3)).min() > 0.03, "a picture without an object"


def test_no_images():
    nothing = World(0).sample(0)
    assert nothing.images.shape == (0, 3, 64, 64) and nothing.prompts == [] and nothing.hues.shape == (0,)


def test_everything_is_drawn(sample):
    assert {*sample.styles} == {*STYLES} and {*sample.hands} == {*HANDS}
    assert {*sample.places} == {NOWHERE, *PLACES}
    assert len({*sample.objects}) > 0.95 * len(OBJECTS)
    assert 0.22 < np.mean([place != NOWHERE for place in sample.places]) < 0.38
    assert np.histogram(sample.hues, 4, (0, 1))[0].min() > 70, "hues should fill the circle evenly"


def test_prompts_tell_the_truth_and_no_more(sample):
    truth = zip(sample.prompts, sample.objects, sample.styles, sample.places, strict=True)
    form = rf"(an?) ({'|'.join(OBJECTS)})(?: ({'|'.join(PLACES)}))?(?: in ({'|'.join(NAMED)}) style)?"
    for words, noun, style, place in truth:
        said = re.fullmatch(form, words)
        assert said, f"{words!r} does not have the form that prompts.py promises"
        assert said.groups()[1:] == (noun, None if place == NOWHERE else place, None if style == PLAIN else style)


@pytest.mark.parametrize("option", ["object", "style", "place", "hand"])
def test_fixed(option):
    value = {"object": "dragon", "style": "blueprint", "place": "in the desert", "hand": HELD_OUT_HAND}[option]
    assert {*getattr(World(1).sample(20, **{option: value}), f"{option}s")} == {value}


def test_no_place_or_style_can_be_asked_for():
    assert {*World(0).sample(20, object="cat", style=PLAIN, place=NOWHERE).prompts} == {"a cat"}


# ------------------------------------------------------------------------------------- palette


@pytest.mark.parametrize("words", STYLES)
def test_palette_is_seen(words):
    """Between opposite hues the mean color moves; between the strokes of one hue it hardly does."""

    def color(hue, seed):
        return draw(words, square((0.6, 0.6, 0.6)), hue=hue, seed=seed).mean((0, 1))

    hues = np.linalg.norm(color(0.1, 0) - color(0.6, 0))
    strokes = np.linalg.norm(color(0.1, 0) - color(0.1, 1))
    assert hues > 0.1 and hues > 2 * strokes


def test_one_prompt_many_palettes():
    sample = World(0).sample(60, object="cat", style="line drawing", place=NOWHERE, hand="noto")
    assert len({*sample.prompts}) == 1
    red, green, _ = sample.images.mean((2, 3)).T
    reds, greens = (np.abs(sample.hues - hue) < 0.08 for hue in (0.05, 0.45))
    assert (red - green)[reds].min() > 0.02 > -0.02 > (red - green)[greens].max()


def test_gray_has_no_hue():
    gray = Palette(0.3).color(0.5, 0)
    assert np.ptp(gray) <= 1 / 255
    assert Palette(0.3).color(0.2, 0.05).mean() < Palette(0.3).color(0.8, 0.05).mean()


def test_palette_turns():
    np.testing.assert_array_equal(Palette(0.2).color(0.6, 0.1, 0.3), Palette(0.5).color(0.6, 0.1))


# ------------------------------------------------------------------------------------- splits


def pairs(sample) -> set[tuple[str, str]]:
    return {*zip(sample.objects, sample.styles, strict=True)}


def test_held_out_pairs_are_held_out():
    train, held = World(5, 16).sample(1500, split="train"), World(5, 16).sample(600, split="held-out")
    assert not pairs(train) & {*HELD_OUT.items()}
    assert pairs(held) == {*HELD_OUT.items()}
    assert {*train.objects} == {*OBJECTS} and {*train.styles} == {*STYLES}


def test_a_tenth_is_held_out_evenly():
    assert 0.08 < len(HELD_OUT) / (len(OBJECTS) * len(STYLES)) < 0.12
    counts = [[*HELD_OUT.values()].count(style) for style in NAMED]
    assert max(counts) - min(counts) <= 1 and PLAIN not in HELD_OUT.values()


def test_held_out_pairs_of_one_style():
    held = World(0).sample(30, style="neon light", split="held-out")
    assert {*held.objects} <= {noun for noun, style in HELD_OUT.items() if style == "neon light"}


# ------------------------------------------------------------------------------------- drawings and subjects


def test_what_is_promised():
    assert len(OBJECTS) >= 48 and len(HANDS) >= 3 and len(NAMED) >= 8 and len(PLACES) >= 6
    assert {"guitar", "sailboat", "mountain", "balloon", "dragon", "unicorn", "cat", "house"} <= {*OBJECTS}
    assert len(SUBJECT_NOUNS) >= 12 and {*SUBJECT_NOUNS.values()} <= {*OBJECTS} and not {*SUBJECT_NOUNS} & {*OBJECTS}


def test_drawings_are_whole_centered_and_unlike():
    names = [(noun, hand) for hand in (*HANDS, HELD_OUT_HAND) for noun in OBJECTS] + [*SUBJECT_HANDS.items()]
    seen = {}
    for name, hand in names:
        image = drawing(name, hand, 64)
        left, top, right, bottom = image.getchannel("A").point(lambda a: 255 * (a > 12)).getbbox()
        assert max(right - left, bottom - top) >= 60, f"{name} by {hand} is small"
        assert abs(left + right - 64) <= 2 and abs(top + bottom - 64) <= 2, f"{name} by {hand} is off center"
        assert seen.setdefault(image.tobytes(), (name, hand)) == (name, hand), "two drawings are the same"


def test_drawings_fit_the_package_and_are_licensed():
    folder = ROOT / "lib/stylemoments/world/sheets"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    rows = (ROOT / "DATA_LICENSES.md").read_text("utf-8")
    for path in folder.glob("*.png"):
        assert path.name in rows, f"add a row for {path.name} to DATA_LICENSES.md"
    for pin in re.findall(r"@iconify-json/([\w-]+)@([\d.]+)", (ROOT / "book/_tools/drawings.py").read_text("utf-8")):
        assert f"{pin[1]} of `@iconify-json/{pin[0]}`" in rows, f"DATA_LICENSES.md must name {pin} as the script does"


def test_pose():
    image = drawing("house", "twemoji", 64)
    still = pose(image, scale=1, down=0, right=0, turn=0)
    np.testing.assert_allclose(still[..., 3], np.asarray(image)[..., 3] / 255, atol=1e-6)
    moved = pose(image, scale=1, down=0.125, right=0, turn=0)
    np.testing.assert_array_equal(moved[8:, :, 3], still[:-8, :, 3])
    small = pose(image, scale=0.5, down=0, right=0, turn=0)
    assert small[..., 3].sum() == pytest.approx(still[..., 3].sum() / 4, rel=0.02)


def test_subjects():
    subjects = World(2).subjects()
    assert [subject.name for subject in subjects] == [*SUBJECT_NOUNS]
    for subject in subjects:
        assert 4 <= len(subject.images) <= 6 and subject.images.shape[1:] == (3, 64, 64)
        assert len({*subject.places}) == len(subject.images), "each picture of a subject shows another place"
        assert subject.noun == SUBJECT_NOUNS[subject.name]
        assert all(np.abs(a - b).mean() > 0.02 for a, b in combinations(subject.images, 2))
    np.testing.assert_array_equal(World(2).subjects()[0].images, subjects[0].images)


@pytest.mark.parametrize(("a", "b"), [*combinations(PLACES, 2)])
def test_places_differ(a, b):
    def mean(words):
        return np.mean([PLACES[words](64, Palette(0.1 * k), random(k)) for k in range(10)], 0)

    assert np.abs(mean(a) - mean(b)).mean() > 0.05


# ------------------------------------------------------------------------------------- what makes each style


@pytest.mark.parametrize(("a", "b"), [*combinations(STYLES, 2)])
def test_styles_differ_on_one_drawing(a, b):
    assert np.abs(draw(a, cat()) - draw(b, cat())).mean() > 0.06


def test_plain_keeps_the_drawing():
    np.testing.assert_allclose(draw(PLAIN, square())[16:48, 16:48], square().rgb[16:48, 16:48], atol=1e-6)


def test_pixel_art_has_blocks_of_four():
    blocks = draw("pixel art", cat()).reshape(16, 4, 16, 4, 3)
    assert np.ptp(blocks, axis=(1, 3)).max() == 0


def test_neon_light_shines_in_the_dark():
    brightness = raster.gray(draw("neon light", square()))
    assert np.median(brightness) < 0.2 and brightness[14:18].max() > 0.8


def test_line_drawing_is_light_and_leaves_surfaces_empty():
    brightness = raster.gray(draw("line drawing", square()))
    assert brightness[32, 32] == brightness[2, 2] > 0.9 and brightness[32, 16] < 0.4


def test_blueprint_has_white_lines_on_blue():
    colors = draw("blueprint", square())
    assert colors[32, 16].min() > 0.9
    assert colors[:12, :, 2].min() > colors[:12, :, 0].max(), "the paper is bluer than red everywhere"


def test_papercut_throws_its_shadow_down_right():
    flat = np.full((64, 64, 3), 0.5, np.float32)
    brightness = raster.gray(draw("papercut art", square(scene=flat)))
    for upper, lower in ((brightness[14, 32], brightness[49, 32]), (brightness[32, 14], brightness[32, 49])):
        assert lower < upper - 0.1


def test_pop_art_has_a_black_contour_and_loud_colors():
    colors = draw("pop art", square())
    assert colors[32, 16].max() < 0.15
    assert np.ptp(colors, axis=2).mean() > 0.3


def test_crayon_strokes_slant():
    brightness = raster.gray(draw("crayon drawing", square(), seed=1))
    along = np.abs(brightness[1:, :-1] - brightness[:-1, 1:]).mean()
    across = np.abs(brightness[1:, 1:] - brightness[:-1, :-1]).mean()
    assert along < 0.8 * across


def test_watercolor_wobbles_on_white_paper():
    colors = draw("watercolor painting", square(), seed=4)
    edge = np.abs(np.diff(raster.gray(colors), axis=1))[:, :28].argmax(1)[20:44]
    assert np.ptp(edge) >= 2, "the left edge of a square should not stay straight"
    assert (colors.min(2) > 0.9).mean() > 0.1, "some paper should stay white"


# ------------------------------------------------------------------------------------- tools


def test_grid_is_in_units():
    rows, columns = raster.grid(128, 256)
    assert rows[0, 0] == 0.25 and columns[0, -1] == 127.75


def test_mix_and_step():
    black, white = np.zeros(3, np.float32), np.ones(3, np.float32)
    np.testing.assert_array_equal(raster.mix(black, white, np.float32([[0, 0.25, 1]]))[0, :, 0], [0, 0.25, 1])
    np.testing.assert_array_equal(raster.step(np.float32([-2, 0, 0.25, 2])), [0, 0.5, 0.75, 1])


def test_wave_and_gray():
    np.testing.assert_allclose(raster.wave(np.float32([0, 0.25, 0.5]), 0.25), [1, 0, -1], atol=1e-7)
    assert raster.gray(np.float32([[[0, 1, 0]]])).item() == pytest.approx(0.587)


def test_blur_keeps_the_mean_and_flattens():
    spot = np.zeros((64, 64), np.float32)
    spot[28:36, 28:36] = 1
    soft = raster.blur(spot, 3)
    assert soft.mean() == pytest.approx(spot.mean(), rel=0.02) and soft.max() < 0.7


def test_shift_and_bend_agree():
    x = random(0).random((64, 64)).astype(np.float32)
    fetched = raster.bend(x, np.full((64, 64), -2, np.float32), np.full((64, 64), 3, np.float32))
    np.testing.assert_allclose(fetched[2:-2, :-4], raster.shift(x, 2, -3)[2:-2, :-4], atol=1e-6)


def test_edges_of_a_flat_mask_and_of_a_square():
    assert raster.edges(np.full((64, 64), 0.4, np.float32), 2).max() == 0
    lines = raster.edges(square().alpha, 2)
    assert lines[32, 15] == lines[32, 16] == 1 and lines[32, 14] == lines[32, 17] == 0


def test_noise_is_smooth_and_in_range():
    x = raster.noise(random(0), (64, 96), 8)
    assert x.shape == (64, 96) and 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1
    assert np.abs(np.diff(x, axis=0)).max() < 0.3


# ------------------------------------------------------------------------------------- your own picture


@pytest.mark.parametrize("words", STYLES)
@pytest.mark.parametrize("size", [(16, 16), (37, 53), (200, 61)])
def test_own_picture_of_any_size(words, size):
    image = Image.effect_noise(size, 60).convert("RGB")
    result = stylize_picture(image, words)
    assert result.size == size and result.mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_own_picture_of_any_mode(mode):
    image = drawing("cat", "noto", 32)
    assert stylize_picture(image.convert(mode), "neon light").mode == "RGB"


def test_tensor_array_and_picture_agree():
    image = drawing("fox", "fluent", 40).convert("RGB")
    planes = np.asarray(image).transpose(2, 0, 1) / np.float32(255)
    result = stylize_picture(planes, "watercolor painting", seed=3)
    tensor = stylize_picture(torch.from_numpy(planes), "watercolor painting", seed=3)
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), result)
    picture = np.asarray(stylize_picture(image, "watercolor painting", seed=3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(picture / np.float32(255), result)


def test_transparency_shows_the_ground_and_hides_its_color():
    planes = np.zeros((4, 32, 32), np.float32)
    planes[3, 8:24, 8:24] = 1
    other = planes.copy()
    other[:3, :8] = 1  # another color where nothing shows
    for words in STYLES:
        np.testing.assert_array_equal(stylize_picture(planes, words), stylize_picture(other, words))
    assert stylize_picture(planes, PLAIN)[:, 2, 2].min() > 0.5


def test_gray_planes():
    gray = np.full((1, 20, 30), 0.5, np.float32)
    np.testing.assert_array_equal(stylize_picture(gray, PLAIN), np.full((3, 20, 30), np.float32(128 / 255)))


def test_hue_is_the_readers():
    red, green = (stylize_picture(np.ones((1, 32, 32)), "line drawing", hue=hue) for hue in (0.08, 0.4))
    assert (red[0] > red[1]).all() and (green[1] > green[0]).all()


def test_patterns_scale_with_the_picture():
    small, large = (stylize_picture(drawing("house", "noto", side), "blueprint", seed=1) for side in (64, 128))
    reduced = large.resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(small, float) - np.asarray(reduced, float)).mean() < 20


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object": "kat"}, "no object 'kat'.*'cat'"),
        ({"style": "papercut"}, "no style 'papercut'.*'papercut art'"),
        ({"place": "on the beech"}, "no place 'on the beech'.*'on the beach'"),
        ({"place": "xyzzy"}, "no place 'xyzzy'.*'nowhere'.*'under water'"),
        ({"hand": "nota"}, "no hand 'nota'.*'noto'"),
        ({"split": "test"}, "no split 'test'"),
        ({"start": -1}, "must not be negative"),
        ({"object": "cat", "style": HELD_OUT["cat"], "split": "train"}, "'train' has no picture of cat in .*'all'"),
        ({"style": PLAIN, "split": "held-out"}, "'held-out' has no picture of an object in plain"),
    ],
)
def test_wrong_request(options, message):
    with pytest.raises(ValueError, match=message):
        World(0).sample(1, **options)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**63}, {"size": 8}])
def test_wrong_world(options):
    with pytest.raises(ValueError, match="got"):
        World(**options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 32, 32)), "1, 3 or 4 channels"),
        (np.zeros((1, 3, 32, 32)), "one picture at a time"),
        (np.zeros((3, 32, 8)), "at least 16 pixels"),
        (np.full((3, 32, 32), 255.0), "Divide 8-bit values by 255"),
        (np.full((3, 32, 32), np.nan), r"\[0, 1\]"),
    ],
)
def test_wrong_picture(image, message):
    with pytest.raises(ValueError, match=message):
        stylize_picture(image, "neon light")


def test_wrong_style_for_a_picture():
    with pytest.raises(ValueError, match="'neon light'"):
        stylize_picture(np.zeros((3, 32, 32)), "neon lights")


def test_types_of_defaults():
    defaults = {p.name: p.default for p in inspect.signature(World.sample).parameters.values()}
    assert defaults | {"self": 0, "n": 0} == {
        "self": 0, "n": 0, "start": 0, "object": None, "style": None, "place": None, "hand": None, "split": "all",
    }  # fmt: skip


@pytest.mark.parametrize(("noun", "words"), [("[V] dog", "a [V] dog"), ("umbrella", "an umbrella")])
def test_article(noun, words):
    assert prompt(noun) == words
