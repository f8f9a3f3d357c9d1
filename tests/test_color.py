"""Color statistics by hand, against other formulations, and on images that have none.

Tolerances: 1e-5 in float32 unless a line says otherwise.
"""

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.color import rgb2yiq
from torch.testing import assert_close

from stylemoments import color
from stylemoments.norms import adain

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def image(*shape, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*(shape or (1, 3, 12, 9)), generator=generator) * (high - low) + low


def colorful(seed=0, shape=(1, 3, 12, 9)):
    """An image whose channels move together, as those of photographs do."""
    mix = torch.tensor([[0.4, 0.2, 0.1], [0.3, 0.3, 0.1], [0.1, 0.2, 0.3]])
    return torch.einsum("ij,bjhw->bihw", mix, image(*shape, seed=seed)) + 0.1


def colors(x):
    """(N, 3), float64."""
    return x[0].flatten(1).T.double().numpy()


class TestCoral:
    def test_by_hand(self):
        # Channels that do not move together: each is stretched and shifted alone.
        x = torch.tensor([[1.0, -1, 0, 0, 0, 0], [0, 0, 1, -1, 0, 0], [0, 0, 0, 0, 1, -1]]).reshape(1, 3, 2, 3)
        scale, shift = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.4, 0.6])[:, None, None]
        assert_close(color.coral(x, x.flip(3) * scale + shift), x * scale + shift, **CLOSE)

    def test_has_the_mean_and_the_covariance_of_the_other(self):
        x, y = colorful(), image(1, 3, 7, 20, seed=1, low=0.2, high=0.6)
        got = colors(color.coral(x, y))
        assert np.allclose(got.mean(0), colors(y).mean(0), atol=1e-6)
        assert np.allclose(np.cov(got.T, ddof=0), np.cov(colors(y).T, ddof=0), atol=1e-6)

    def test_against_scipy_square_roots(self):
        x, y = colorful(), colorful(seed=3) * image(1, 3, 1, 1, seed=4)
        a, b = colors(x), colors(y)
        root_x, root_y = (scipy.linalg.sqrtm(np.cov(v.T, ddof=0)) for v in (a, b))
        expected = (a - a.mean(0)) @ np.linalg.inv(root_x).T @ root_y.T + b.mean(0)
        assert np.allclose(colors(color.coral(x, y)), expected, atol=1e-5)

    def test_differs_from_cholesky_by_a_rotation(self):
        """Any two maps with the right covariance differ by a rotation of the whitened colors; ours turns least."""
        x, y = colorful(), colorful(seed=3)
        a, b = colors(x), colors(y)
        lower_x, lower_y = (np.linalg.cholesky(np.cov(v.T, ddof=0)) for v in (a, b))
        by_cholesky = (a - a.mean(0)) @ np.linalg.inv(lower_x).T @ lower_y.T + b.mean(0)
        ours = colors(color.coral(x, y))
        whitener = np.linalg.inv(scipy.linalg.sqrtm(np.cov(b.T, ddof=0)))
        rotation, *_ = np.linalg.lstsq((by_cholesky - b.mean(0)) @ whitener, (ours - b.mean(0)) @ whitener, rcond=None)
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)
        assert not np.allclose(rotation, np.eye(3), atol=1e-2), "the two are not the same map"

    def test_is_adain_on_colors_that_do_not_move_together(self):
        x = torch.tensor([[1.0, -1, 0, 0, 0, 0], [0, 0, 1, -1, 0, 0], [0, 0, 0, 0, 1, -1]]).reshape(1, 3, 2, 3)
        y = x * torch.tensor([0.1, 0.2, 0.3])[:, None, None] + 0.5
        assert_close(color.coral(x, y), adain(x, y, eps=0.0), **CLOSE)

    def test_with_itself_changes_nothing(self):
        assert_close(color.coral(colorful(), colorful()), colorful(), **CLOSE)

    def test_forgets_the_colors_before(self):
        x, y, z = colorful(), colorful(seed=3), image(seed=5)
        assert_close(color.coral(color.coral(x, y), z), color.coral(x, z), rtol=1e-4, atol=1e-4)

    def test_each_image_of_a_batch_has_its_own_colors(self):
        x, y = torch.cat([colorful(0), image(seed=2)]), torch.cat([colorful(3), image(seed=4)])
        assert_close(color.coral(x, y), torch.cat([color.coral(x[i : i + 1], y[i : i + 1]) for i in (0, 1)]), **CLOSE)
        assert_close(color.coral(x, y[:1])[1:], color.coral(x[1:], y[:1]), **CLOSE)

    def test_a_constant_image_becomes_the_mean_color(self):
        x, y = torch.full((1, 3, 4, 4), 0.3), colorful()
        assert_close(color.coral(x, y), y.mean((2, 3), keepdim=True).expand(1, 3, 4, 4), **CLOSE)

    def test_the_colors_of_a_constant_image_are_constant(self):
        y = torch.tensor([0.2, 0.5, 0.7]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
        assert_close(color.coral(colorful(), y), y[..., :1, :1].expand(1, 3, 12, 9), **CLOSE)

    def test_a_gray_image_stays_on_a_line_and_finite(self):
        gray = image(1, 1, 12, 9).expand(1, 3, 12, 9)
        got = color.coral(gray, colorful(seed=1))
        values = np.linalg.eigvalsh(np.cov(colors(got).T))
        assert torch.isfinite(got).all()
        assert values[1] < 1e-9 < values[2], "one direction varies, as in the gray image"
        assert_close(got.mean((2, 3)), colorful(seed=1).mean((2, 3)), **CLOSE)

    def test_the_colors_of_a_gray_image_are_gray(self):
        gray = image(1, 1, 12, 9, seed=2).expand(1, 3, 12, 9)
        got = color.coral(colorful(), gray)
        assert_close(got, got.mean(1, keepdim=True).expand_as(got), **CLOSE)

    def test_the_noise_of_a_gray_picture_does_not_turn_into_colors(self):
        gray = image(1, 1, 40, 40).expand(1, 3, 40, 40)
        noisy = gray + (image(1, 3, 40, 40, seed=1) - 0.5) / 255  # a deviation of 0.29 steps of 8 bits
        y = colorful(seed=1)
        across = torch.from_numpy(np.linalg.eigvalsh(np.cov(colors(y).T))[:2]).sqrt()  # the two weak directions of y
        left = torch.from_numpy(np.linalg.eigvalsh(np.cov(colors(color.coral(noisy, y)).T))[:2]).sqrt()
        assert (left < 0.5 * across).all(), f"deviations {left.tolist()} of {across.tolist()}"


class TestLuminance:
    def test_by_hand(self):
        for channel, weight in enumerate((0.299, 0.587, 0.114)):
            pure = torch.eye(3)[channel].reshape(1, 3, 1, 1)
            assert color.luminance(pure).item() == pytest.approx(weight)
        assert_close(color.luminance(torch.ones(2, 3, 4, 5)), torch.ones(2, 1, 4, 5), **CLOSE)

    def test_against_scikit_image(self):
        x = image()
        expected = rgb2yiq(x[0].permute(1, 2, 0).double().numpy())[..., 0]
        assert np.allclose(color.luminance(x)[0, 0].numpy(), expected, atol=1e-6)


class TestKeepLuminance:
    def test_by_hand(self):
        gray, red = torch.full((1, 3, 1, 1), 0.5), torch.tensor([0.5, 0.3, 0.3]).reshape(1, 3, 1, 1)
        moved = 0.5 - (0.299 * 0.5 + 0.701 * 0.3)
        assert_close(color.keep_luminance(gray, red), red + moved, **CLOSE)

    def test_exchanges_y_in_yiq(self):
        stylized, content = image(low=0.4, high=0.6), image(seed=1, low=0.4, high=0.6)  # all within reach
        got = rgb2yiq(color.keep_luminance(stylized, content)[0].permute(1, 2, 0).double().numpy())
        y = rgb2yiq(stylized[0].permute(1, 2, 0).double().numpy())
        chroma = rgb2yiq(content[0].permute(1, 2, 0).double().numpy())
        assert np.allclose(got[..., 0], y[..., 0], atol=1e-5)
        assert np.allclose(got[..., 1:], chroma[..., 1:], atol=1e-5)

    def test_out_of_reach_keeps_luminance_and_hue(self):
        stylized, content = image(), image(seed=1)
        got = color.keep_luminance(stylized, content)
        assert 0 <= got.min() and got.max() <= 1
        assert_close(color.luminance(got), color.luminance(stylized), **CLOSE)
        before, after = (v - color.luminance(v) for v in (content, got))
        share = (before * after).sum(1, keepdim=True) / before.square().sum(1, keepdim=True)
        assert_close(after, share * before, rtol=1e-4, atol=1e-5)
        assert share.max() <= 1 + 1e-5, "colors fade, they do not grow"
        assert share.min() < 0.9, "some of these colors do not fit"

    def test_gray_content_stays_gray(self):
        gray = image(1, 1, 12, 9, seed=1).expand(1, 3, 12, 9)
        got = color.keep_luminance(image(), gray)
        assert_close(got, color.luminance(image()).expand_as(got), **CLOSE)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_black_and_white_are_finite(self, value):
        got = color.keep_luminance(torch.full((1, 3, 12, 9), value), image())
        assert_close(got, torch.full((1, 3, 12, 9), value), **CLOSE)

    def test_with_itself_changes_nothing(self):
        assert_close(color.keep_luminance(image(), image()), image(), **CLOSE)

    def test_one_content_serves_a_batch(self):
        stylized, content = image(2, 3, 12, 9), image(seed=1)
        assert_close(color.keep_luminance(stylized, content)[1:], color.keep_luminance(stylized[1:], content))


WRONG = [
    (lambda: color.coral(image(1, 4, 5, 5), image()), ValueError, "alpha * rgb"),
    (lambda: color.keep_luminance(image(), image(1, 4, 12, 9)), ValueError, "alpha * rgb"),
    (lambda: color.coral(image(1, 1, 5, 5), image()), ValueError, "(1, 1, 5, 5)"),
    (lambda: color.coral(image(3, 5, 5), image()), ValueError, "(3, 5, 5)"),
    (lambda: color.coral(torch.ones(1, 3, 5, 5, dtype=torch.uint8), image()), TypeError, "/ 255"),
    (lambda: color.coral(None, image()), TypeError, "NoneType"),
    (lambda: color.coral(image(), torch.empty(1, 3, 0, 4)), ValueError, "(1, 3, 0, 4)"),
    (lambda: color.coral(image(), image(2, 3, 5, 5)), ValueError, "got 1 and 2"),
    (lambda: color.keep_luminance(image(), image(1, 3, 9, 12)), ValueError, "one size"),
    (lambda: color.luminance(image(1, 2, 4, 4)), ValueError, "(1, 2, 4, 4)"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, says", WRONG, ids=range(len(WRONG)))
def test_wrong_input_gets_a_clear_error(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def test_results_keep_dtype_and_shape():
    for dtype in (torch.float32, torch.float64):
        x, y = image().to(dtype), image(seed=1).to(dtype)
        for got in (color.coral(x, y), color.keep_luminance(x, y)):
            assert (got.dtype, got.shape) == (dtype, x.shape)


# ------------------------------------------------------------------------------------- palettes


def test_the_distance_of_two_gray_gaussians_by_hand():
    """Gray pictures: three equal channels, so the distance is sqrt(3) times that of means and deviations."""
    x = torch.tensor([0.2, 0.4]).view(1, 1, 1, 2).expand(1, 3, 1, 2)  # mean 0.3, deviation 0.1
    y = torch.tensor([0.3, 0.9]).view(1, 1, 1, 2).expand(1, 3, 1, 2)  # mean 0.6, deviation 0.3
    expected = (3 * (0.3**2 + 0.2**2)) ** 0.5
    assert color.palette_distance(x, y).item() == pytest.approx(expected, abs=1e-6)


def test_the_distance_equals_that_of_scipy():
    """The Fréchet distance as others compute it, with scipy's root of a matrix that is not symmetric."""
    x, y = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) ** (seed + 1) for seed in (0, 1))
    a, b = (image.flatten(2)[0].double().numpy() for image in (x, y))
    mixed = scipy.linalg.sqrtm(np.cov(a, bias=True) @ np.cov(b, bias=True)).real
    squared = ((a.mean(1) - b.mean(1)) ** 2).sum() + np.trace(np.cov(a, bias=True) + np.cov(b, bias=True) - 2 * mixed)
    assert color.palette_distance(x, y).item() == pytest.approx(squared**0.5, rel=1e-6)


def test_a_palette_does_not_know_places():
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert color.palette_distance(x, x.flip(-1)).max() < 1e-6
    assert color.palette_distance(x, color.coral(x[:1], x[1:])).shape == (2,)
    assert color.palette_distance(x, x[:1])[0] < 1e-6 < color.palette_distance(x, x[:1])[1]


def test_the_distance_checks_its_pictures():
    with pytest.raises(ValueError, match="y must have the shape"):
        color.palette_distance(torch.rand(1, 3, 4, 4), torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="one by one; got 2 and 3"):
        color.palette_distance(torch.rand(2, 3, 4, 4), torch.rand(3, 3, 4, 4))
