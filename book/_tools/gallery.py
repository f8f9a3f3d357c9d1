r"""Collects the photographs and paintings of ``stylemoments.gallery`` from Debian's package gcompris-qt-data.

    python book/_tools/gallery.py gcompris-qt-data_3.1-2_all.deb

The package is fetched by ``apt-get download gcompris-qt-data`` and opened by ``dpkg-deb``. Its pictures lie in Qt
resource files, each with a README that names author, license and source. Only public-domain and CC0 pictures are taken.
"""

import csv
import io
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[2] / "lib/stylemoments/gallery"
SHORT_SIDE = {"photograph": 384, "painting": 512}
FREE = ("public domain", "cc0-1.0")
COLUMNS = ("name", "kind", "split", "title", "author", "license", "source")

#: The paintings: file, title, and the split.
PAINTINGS = {
    "Eglise_dAuvers-sur-Oise": ("church-at-auvers", "The Church at Auvers", "train"),
    "Gogh4": ("cafe-terrace", "Café Terrace at Night", "test"),
    "PortraitOfPereTanguy": ("pere-tanguy", "Portrait of Père Tanguy", "test"),
    "Van_Gogh_The_Night_Cafe": ("night-cafe", "The Night Café", "test"),
    "VincentVanGogh0012": ("hospital-vestibule", "Vestibule of the Asylum, Saint-Rémy", "train"),
    "VincentVanGogh0013": ("painter-on-the-road", "The Painter on the Road to Tarascon", "test"),
    "VincentVanGogh0019": ("harvest", "Harvest at La Crau", "train"),
    "VincentVanGoghBridge": ("langlois-bridge", "The Langlois Bridge at Arles", "test"),
}
PHOTOGRAPHS = ("erase", "explore_monuments", "explore_world_animals", "explore_farm_animals", "explore_world_music")
TEST = ("neuschwanstein-castle", "golden-temple", "red-panda", "scarlet-macaw", "machu-picchu", "kingfisher")
LEFT_OUT = ("middleeast", "cabrillo", "victoria-memorial", "red-pyramid")  # cut-outs, panoramas, very small subjects


def members(resource: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a Qt resource (format: qrcgen in the sources of Qt's rcc)."""
    version, tree, data, names = struct.unpack(">4I", resource[4:20])
    size = 22 if version >= 2 else 14

    def name(at: int) -> str:
        (length,) = struct.unpack_from(">H", resource, names + at)
        return resource[names + at + 6 : names + at + 6 + 2 * length].decode("utf-16-be")

    def walk(number: int, path: str):
        at = tree + number * size
        name_at, flags = struct.unpack_from(">IH", resource, at)
        path = f"{path}/{name(name_at)}" if number else ""
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", resource, at + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (place,) = struct.unpack_from(">I", resource, at + 10)
            (length,) = struct.unpack_from(">I", resource, data + place)
            content = resource[data + place + 4 : data + place + 4 + length]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def credits(readme: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each picture that a README lists, with its author, license and source."""
    for part in readme.split("\n\n"):
        fields = {key: (re.search(rf"^{key}:\s*(.*)", part, re.M) or ["", ""])[1].strip()
                  for key in ("Copyright", "License", "Source")}  # fmt: skip
        for file in re.findall(r"\S+\.webp", part):
            yield file, fields


def slug(file: str) -> str:
    """A file's name in words: ``wonders/greatWallofChina.webp`` is ``great-wall-of-china``."""
    words = re.sub(r"(des|de|du|of)(?=[A-Z])", r"-\1", Path(file).stem)
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", "-", words).lower()


def save(content: bytes, name: str, kind: str) -> None:
    """Write the picture with a short side of at most :data:`SHORT_SIDE`."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = min(1, SHORT_SIDE[kind] / min(image.size))
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    image.save(FOLDER / f"{name}.webp", quality=82, method=6)


def collect(resources: Path) -> Iterator[dict[str, str]]:
    """Save every picture that is free, and yield its row of the index."""
    for activity in PHOTOGRAPHS:
        files = dict(members((resources / f"{activity}.rcc").read_bytes()))
        for readme in [path for path in files if path.endswith("/README")]:
            for file, known in credits(files[readme].decode()):
                name, content = slug(file), files.get(readme.removesuffix("README") + file)
                if content and name not in LEFT_OUT and known["License"].lower() in FREE:
                    save(content, name, "photograph")
                    split = "test" if name in TEST else "train"
                    license = "CC0-1.0" if known["License"].startswith("CC0") else "public domain"
                    yield {"name": name, "kind": "photograph", "split": split, "title": name.replace("-", " "),
                           "author": known["Copyright"], "license": license, "source": known["Source"]}  # fmt: skip
    files = dict(members((resources / "details.rcc").read_bytes()))
    for stem, (name, title, split) in PAINTINGS.items():
        (path,) = [path for path in files if path.endswith(f"/{stem}_background.webp")]
        save(files[path], name, "painting")
        yield {"name": name, "kind": "painting", "split": split, "title": title,
               "author": "Vincent van Gogh (1853–1890)", "license": "public domain",
               "source": "gcompris-qt-data: activities/details"}  # fmt: skip


def main() -> None:
    package = Path(sys.argv[1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
        rows = {row["name"]: row for row in collect(Path(folder) / "usr/share/gcompris-qt/rcc")}
    with (FOLDER / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows.values(), key=lambda row: (row["kind"], row["name"])))
    size = sum(path.stat().st_size for path in FOLDER.glob("*.webp"))
    print(f"{len(rows)} pictures, {size / 1e6:.1f} MB in {FOLDER}")


if __name__ == "__main__":
    main()
