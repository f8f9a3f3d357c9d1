"""Collect the drawings of the tiny world: read openly licensed emoji sets, write one sheet per hand.

    mkdir sets && cd sets
    npm pack @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5
    npm pack @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji@1.2.7
    cd .. && pip install resvg-py==0.5.0
    python book/_tools/drawings.py sets

It needs resvg-py, which nothing else here needs, and pillow 13.0.0. Each drawing is cropped to what is painted and
centered in a square of 128 pixels. Written to lib/stylemoments/world/sheets: `HAND.png`, the drawings of one hand in
rows of eight, and `index.json`, which says what they show. The same packages give the same pixels on every run.

Authors and licenses stand in DATA_LICENSES.md. OpenMoji is left out: its license is share-alike.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import resvg_py
from PIL import Image

TARGET = Path(__file__).parents[2] / "lib/stylemoments/world/sheets"
SETS = {  # hand: the file that npm pack writes
    "noto": "iconify-json-noto-1.2.9.tgz",
    "twemoji": "iconify-json-twemoji-1.2.5.tgz",
    "fluent": "iconify-json-fluent-emoji-1.2.7.tgz",
    "noto-v1": "iconify-json-noto-v1-1.2.5.tgz",
}
SIZE, MARGIN, COLUMNS = 128, 2, 8

# Nouns that every hand draws recognizably. Left out after looking: "bird" (Fluent cuts it to a flag), "bee" and "bat"
# (another pose in each hand), and plural nouns.
OBJECTS = """
    airplane apple balloon bear bicycle bus butterfly cactus cake camel camera car castle cat church cow
    crown dog dragon drum duck elephant fish guitar hat horse house key mountain mushroom octopus penguin
    pig pineapple pizza rabbit rocket rose sailboat snowman sunflower tent train tree trumpet turtle umbrella unicorn
""".split()
ICONS = {  # where the icon has another name than the object
    "apple": "red-apple",
    "cake": "shortcake",
    "car": "automobile",
    "hat": "top-hat",
    "snowman": "snowman-without-snow",
    "train": "locomotive",
    "tree": "deciduous-tree",
}
SUBJECTS = {  # name: (noun of its class, hand, icon); each looks unlike every drawing of its class
    "banjo": ("guitar", "noto", "banjo"),
    "biplane": ("airplane", "twemoji", "small-airplane"),
    "birthday cake": ("cake", "noto-v1", "birthday-cake"),
    "circus tent": ("tent", "twemoji", "circus-tent"),
    "fox": ("dog", "fluent", "fox"),
    "mammoth": ("elephant", "noto", "mammoth"),
    "pagoda": ("castle", "fluent", "japanese-castle"),
    "palm tree": ("tree", "noto", "palm-tree"),
    "panda": ("bear", "noto", "panda"),
    "police car": ("car", "noto", "police-car"),
    "poodle": ("dog", "noto-v1", "poodle"),
    "tiger": ("cat", "noto-v1", "tiger"),
    "tropical fish": ("fish", "noto", "tropical-fish"),
    "tyrannosaur": ("dragon", "twemoji", "t-rex"),
    "volcano": ("mountain", "noto", "volcano"),
    "zebra": ("horse", "noto", "zebra"),
}


def read_set(path: Path) -> dict:
    """The icons of one packed set."""
    with tarfile.open(path) as package:
        return json.load(package.extractfile("package/icons.json"))


def svg(icons: dict, name: str) -> str:
    """One icon as a whole SVG document; aliases are followed."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    box = [icon.get(key, icons.get(key, 0)) for key in ("left", "top", "width", "height")]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


def draw(icons: dict, name: str) -> Image.Image:
    """One icon, RGBA, its painted part centered and as large as the margin allows."""
    png = resvg_py.svg_to_bytes(svg_string=svg(icons, name), width=4 * SIZE, height=4 * SIZE)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 12)).getbbox())
    scale = (SIZE - 2 * MARGIN) / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(picture, [(SIZE - side) // 2 for side in picture.size])
    return square


def write_sheet(path: Path, drawings: list[Image.Image]) -> None:
    sheet = Image.new("RGBA", (COLUMNS * SIZE, -(-len(drawings) // COLUMNS) * SIZE))
    for i, drawing in enumerate(drawings):
        sheet.paste(drawing, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
    sheet.save(path, optimize=True)
    print(f"{path.name}: {len(drawings)} drawings, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where npm pack left the .tgz files")
    folder = parser.parse_args().folder
    sets = {hand: read_set(folder / name) for hand, name in SETS.items()}
    for hand, icons in sets.items():
        write_sheet(TARGET / f"{hand}.png", [draw(icons, ICONS.get(noun, noun)) for noun in OBJECTS])
    write_sheet(TARGET / "subjects.png", [draw(sets[hand], icon) for _, hand, icon in SUBJECTS.values()])
    index = {
        "size": SIZE,
        "columns": COLUMNS,
        "hands": [*SETS],
        "objects": OBJECTS,
        "subjects": {name: {"noun": noun, "hand": hand} for name, (noun, hand, _) in SUBJECTS.items()},
    }
    (TARGET / "index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
