import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image

from stylemoments.metrics import mean_interval
from stylemoments.show import COLORS, band, effects, grid, use_style


@pytest.fixture(autouse=True)
def fresh_matplotlib():
    """Every test starts from matplotlib's defaults and leaves no figure open."""
    with plt.rc_context():
        yield
    plt.close("all")


def drawn(figure):
    """The pixels of every image in a figure."""
    return [axes.images[0].get_array() for axes in figure.axes]


def lightness(color):
    """CIE L* of a color, from 0 (black) to 100 (white)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * np.cbrt(luminance) - 16


class TestStyle:
    def test_palette_is_eight_colors_with_black_and_yellow_last(self):
        assert len(set(COLORS)) == 8
        assert COLORS[-2:] == ("#000000", "#F0E442")

    def test_first_four_colors_differ_in_lightness(self):
        steps = np.diff(sorted(lightness(color) for color in COLORS[:4]))
        assert steps.min() > 6, f"lightness steps {steps}: colors would look alike in gray print"

    def test_lines_take_the_palette_in_order(self):
        use_style()
        _, ax = plt.subplots()
        lines = [ax.plot([0, 1])[0].get_color() for _ in COLORS]
        assert lines == list(COLORS)

    def test_figure_ground_is_opaque_white(self):
        plt.rcParams["figure.facecolor"] = "none"
        use_style()
        assert plt.figure().get_facecolor() == (1, 1, 1, 1)

    def test_axes_have_a_grid_and_no_top_or_right_spine(self):
        use_style()
        _, ax = plt.subplots()
        assert ax.xaxis.get_gridlines()[0].get_visible()
        assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()


class TestGrid:
    def test_batch_of_colors_is_drawn_channels_last(self):
        images = torch.rand(2, 3, 4, 5, generator=torch.manual_seed(0))
        for axes_image, image in zip(drawn(grid(images)), images, strict=True):
            np.testing.assert_allclose(axes_image, image.permute(1, 2, 0))

    def test_gray_batch_is_drawn_gray(self):
        figure = grid(torch.linspace(0.2, 0.4, 4).reshape(1, 1, 2, 2))
        np.testing.assert_allclose(drawn(figure)[0], [[0.2, 0.2667], [0.3333, 0.4]], atol=1e-4)
        image = figure.axes[0].images[0]
        assert image.cmap.name == "gray"
        assert image.get_clim() == (0, 1), "gray must not be stretched to the image's own range"

    @pytest.mark.parametrize(
        "image",
        [
            Image.new("RGB", (3, 2), (255, 0, 51)),
            np.full((2, 3, 3), (255, 0, 51), dtype=np.uint8),
            np.full((2, 3, 3), (1.0, 0.0, 0.2)),
            torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 2, 3).requires_grad_(),
            torch.tensor([255, 0, 51], dtype=torch.uint8)[:, None, None].expand(3, 2, 3),
        ],
        ids=["PIL", "uint8 array", "float array", "tensor", "uint8 tensor"],
    )
    def test_every_kind_of_image_gives_the_same_pixels(self, image):
        np.testing.assert_allclose(drawn(grid([image]))[0], np.full((2, 3, 3), (1.0, 0.0, 0.2)), atol=1e-7)

    def test_list_may_mix_kinds_and_gray_arrays(self):
        gray = np.array([[0, 255]], dtype=np.uint8)
        figure = grid([gray, Image.new("L", (2, 1), 255), torch.zeros(1, 1, 2)])
        assert [image.shape for image in drawn(figure)] == [(1, 2), (1, 2, 3), (1, 2)]
        assert drawn(figure)[0].tolist() == [[0, 1]]

    def test_columns_and_titles(self):
        figure = grid(np.zeros((5, 2, 2, 3)), columns=2, titles=list("abcde"))
        assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 2)
        assert [axes.get_title() for axes in figure.axes] == list("abcde")

    def test_one_row_of_eight_is_the_default(self):
        geometry = grid(np.zeros((9, 2, 2, 3))).axes[0].get_subplotspec().get_gridspec().get_geometry()
        assert geometry == (2, 8)

    def test_size_is_the_width_of_an_image_in_inches(self):
        figure = grid(np.zeros((2, 30, 60, 3)), size=2)
        assert figure.get_size_inches().tolist() == [4, 1]

    def test_figure_is_left_out_of_pyplot_so_that_a_notebook_shows_it_once(self):
        grid(np.zeros((1, 2, 2, 3)))
        assert plt.get_fignums() == []

    def test_rounding_beyond_the_range_is_clipped(self):
        assert drawn(grid([np.array([[-0.0005, 1.0005]])]))[0].tolist() == [[0, 1]]

    @pytest.mark.parametrize("values", [[[0, 1.01]], [[-0.01, 1]], [[0, np.nan]]])
    def test_values_out_of_range(self, values):
        with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]; got values from .* Undo"):
            grid([np.array(values)])

    def test_no_images(self):
        with pytest.raises(ValueError, match="at least one image; got none"):
            grid([])

    @pytest.mark.parametrize("image", [torch.zeros(3, 4, 4), np.zeros((4, 4)), Image.new("L", (2, 2))])
    def test_single_image(self, image):
        with pytest.raises(ValueError, match=r"got (shape|one PIL image).*Pass a single image as \[image\]"):
            grid(image)

    @pytest.mark.parametrize("image", [torch.zeros(4, 4, 3), np.zeros((3, 4, 4)), np.zeros(4), torch.zeros(2, 4, 4)])
    def test_wrong_shape_names_it(self, image):
        with pytest.raises(ValueError, match=rf"got shape \({image.shape[0]},.*Move the channels first"):
            grid([image])

    def test_titles_must_match(self):
        with pytest.raises(ValueError, match="one title per image; got 1 for 2 images"):
            grid(np.zeros((2, 2, 2, 3)), titles=["a"])


@pytest.fixture
def ax():
    return plt.subplots()[1]


class TestBand:
    def test_draws_mean_and_interval(self, ax):
        values = np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]])
        band(ax, [10, 20], values, label="runs")
        assert ax.lines[0].get_xydata().tolist() == [[10, 2], [20, 4]]
        corners = ax.collections[0].get_paths()[0].vertices
        at_10 = corners[corners[:, 0] == 10, 1]
        _, low, high, _ = mean_interval(values[:, 0])
        np.testing.assert_allclose([at_10.min(), at_10.max()], [low, high])
        np.testing.assert_allclose([low, high], [-0.4841, 4.4841], atol=1e-4)  # 2 ± 4.3027 / √3

    def test_band_is_the_line_made_translucent(self, ax):
        band(ax, [0, 1], np.eye(2), label="first")
        band(ax, [0, 1], np.eye(2), label="second", color=COLORS[3])
        for line, area in zip(ax.lines, ax.collections, strict=True):
            assert area.get_facecolor()[0].tolist() == [*to_rgb(line.get_color()), 0.2]
        assert ax.lines[1].get_color() == COLORS[3]

    def test_legend_has_one_entry_per_band(self, ax):
        band(ax, [0, 1], np.eye(2), label="runs")
        assert ax.get_legend_handles_labels()[1] == ["runs"]

    @pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 2, 2)])
    def test_wrong_shape(self, ax, shape):
        with pytest.raises(ValueError, match=r"shape \(n, 2\); got \("):
            band(ax, [0, 1], np.zeros(shape), label="runs")

    def test_one_run_has_no_interval(self, ax):
        with pytest.raises(ValueError, match="at least two"):
            band(ax, [0, 1], np.zeros((1, 2)), label="runs")


class TestEffects:
    def test_a_tick_for_each_pair_and_the_mean_with_its_interval(self, ax):
        effects(ax, {"a": [1.0, 2.0, 3.0], "b": [0.0, 0.0]}, "less b")
        ticks, mean = ax.lines[0], ax.containers[0][0]
        assert ticks.get_xdata().tolist() == [1.0, 2.0, 3.0] and mean.get_xdata().item() == 2.0
        (bar,) = ax.containers[0][2]
        low, high = bar.get_segments()[0][:, 0]
        assert (round(low, 3), round(high, 3)) == (-0.484, 4.484)  # 4.303 standard errors of 0.577
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
        assert ax.get_title() == "less b" and ax.yaxis_inverted()

    @pytest.mark.parametrize(("found", "said"), [({}, "got none"), ({"a": [1.0]}, "two repetitions")])
    def test_refuses(self, ax, found, said):
        with pytest.raises(ValueError, match=said):
            effects(ax, found)
