r"""Keeping the colors of a photograph while its style changes.

Two ways, both from Gatys et al., *Preserving Color in Neural Artistic Style Transfer* (arXiv 1606.05897):

- *before* the transfer, give the style image the colors of the content: ``style = coral(style, content)``. The brush
  strokes then arrive in the photograph's own colors.
- *after* it, keep the new luminance and take the chroma of the photograph: ``keep_luminance(stylized, content)``.

Images are floating-point RGB ``(B, 3, H, W)`` in [0, 1]. A fourth channel is refused, because a color without its
background is not known: :func:`stylemoments.files.read` lays transparent pictures over white.
"""

import torch
from torch import Tensor

STEP = 1 / 255  # between neighboring values of 8-bit images
LUMA = (0.299, 0.587, 0.114)  # weights of R, G, B in the Y of YIQ (NTSC; also ITU-R BT.601), on gamma-encoded values


@torch.no_grad()
def coral(x: Tensor, y: Tensor) -> Tensor:
    r"""Give x the mean color and the full 3 × 3 color covariance of y: CORAL, by whitening and coloring.

    .. math:: \Sigma_y^{1/2}\, \Sigma_x^{-1/2}\, (x - \mu_x) + \mu_y

    AdaIN does this for each channel alone; CORAL also matches how the channels move together. Sun, Feng & Saenko 2016
    (arXiv 1511.05547). The roots are the symmetric ones, which turn the colors least; Gatys et al. call this linear
    map, with these roots, the one of *Image Analogies*, and prefer it to that of Cholesky factors.

    What differs: Sun et al. add the identity to both covariances. Nothing is added here, so the result has the moments
    of y to rounding. Only a direction in which x deviates by less than one step of 8 bits is stretched as if it did
    by one step, so that the noise of a gray picture does not turn into colors. A gray x stays on one line of colors; a
    constant x becomes the mean color of y.

    Args:
        x: images ``(B, 3, H, W)``; these change.
        y: images whose colors x is given, of any size; batch B or 1.

    Returns:
        a tensor of the shape of x. A linear map may leave [0, 1]: clamp before you show or save it.

    Raises:
        TypeError: not floating point.
        ValueError: other shapes.

    Example:
        >>> x, y = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 5, 9)
        >>> torch.allclose(coral(x, y).mean((2, 3)), y.mean((2, 3)), atol=1e-6)
        True
    """
    _check_pair(x, y, "coral")
    mean_x, covariance_x = _color_moments(x)
    mean_y, covariance_y = _color_moments(y)
    whiten = _symmetric_power(covariance_x, -0.5, least=STEP**2)
    matrix = _symmetric_power(covariance_y, 0.5) @ whiten  # B 3 3
    colors = matrix @ (x.flatten(2).double() - mean_x) + mean_y
    return colors.unflatten(2, x.shape[2:]).to(x.dtype)


def luminance(images: Tensor) -> Tensor:
    """The Y of YIQ: 0.299 R + 0.587 G + 0.114 B, on the values as they are stored (gamma-encoded, not linear light).

    Args:
        images: RGB ``(B, 3, H, W)``.

    Returns:
        ``(B, 1, H, W)``.

    Raises:
        TypeError: not floating point.
        ValueError: another shape.

    Example:
        >>> round(luminance(torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1)).item(), 3)  # pure green
        0.587
    """
    _check_image(images, "luminance")
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights).unsqueeze(1)


def keep_luminance(stylized: Tensor, content: Tensor) -> Tensor:
    r"""The luminance (Y of YIQ) of one image with the chroma (I and Q) of another.

    In YIQ each of R, G and B is Y plus a sum of I and Q. So the exchange of Y is an addition: every channel of the
    content moves by the difference of the luminances.

    What differs from the paper: where such a color does not exist (bright and blue, say), its chroma is scaled towards
    gray until it does. Clamping instead would change luminance and hue.

    Args:
        stylized: images ``(B, 3, H, W)`` in [0, 1].
        content: images of the same size; batch B or 1.

    Returns:
        images in [0, 1] with the luminance of ``stylized``.

    Raises:
        TypeError: not floating point.
        ValueError: other shapes, or sizes that differ.

    Example:
        >>> gray, red = torch.full((1, 3, 1, 1), 0.3), torch.tensor([0.7, 0.1, 0.1]).reshape(1, 3, 1, 1)
        >>> [round(v, 3) for v in keep_luminance(gray, red).flatten().tolist()]  # red has luminance 0.279
        [0.721, 0.121, 0.121]
    """
    _check_pair(stylized, content, "keep_luminance")
    if stylized.shape[2:] != content.shape[2:]:
        raise ValueError(
            f"keep_luminance needs two images of one size; got {tuple(stylized.shape)} and {tuple(content.shape)}"
        )
    y = luminance(stylized).clamp(0, 1)
    chroma = content - luminance(content)
    reach = torch.where(chroma > 0, 1 - y, y)  # how far each channel may move before it leaves [0, 1]
    share = torch.where(chroma.abs() > reach, reach / chroma.abs(), 1.0).amin(1, keepdim=True)
    return (y + share * chroma).clamp(0, 1)  # the clamp takes off rounding only


def palette_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""How far apart the colors of pictures are: the distance of the two Gaussians with their moments.

    The 2-Wasserstein distance (Dowson & Landau, *The Fréchet Distance between Multivariate Normal Distributions*, 1982)
    of means :math:`\mu` and covariances :math:`\Sigma` of the colors,

    .. math:: d^2 = \lVert \mu_x - \mu_y \rVert^2
              + \mathrm{tr}\left(\Sigma_x + \Sigma_y - 2 (\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2}\right)

    It is 0 where :func:`coral` would change nothing, and knows nothing of where a color is.

    Args:
        x, y: ``(B, 3, H, W)`` in [0, 1]; one picture stands for as many as the other has.

    Returns:
        ``(B,)`` float64, 0 to :math:`\sqrt 3`, the distance of black and white.

    Raises:
        ValueError: not pictures, or not as many.

    Example:
        >>> round(palette_distance(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item(), 4)
        1.7321
    """
    for name, images in (("x", x), ("y", y)):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"palette_distance: {name} must have the shape (B, 3, H, W); got {tuple(images.shape)}")
    if len(x) != len(y) and 1 not in (len(x), len(y)):
        raise ValueError(f"palette_distance compares pictures one by one; got {len(x)} and {len(y)}")
    (mean_x, spread_x), (mean_y, spread_y) = _color_moments(x), _color_moments(y)
    root = _symmetric_power(spread_x, 0.5)
    mixed = _symmetric_power(root @ spread_y @ root, 0.5)
    spread = (spread_x + spread_y - 2 * mixed).diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean_x - mean_y).square().sum((-2, -1)) + spread.clamp_min(0)).sqrt()


# ---------------------------------------------------------------------------------------- helpers


def _color_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, 3, 1) and biased covariance (B, 3, 3) of the colors, float64."""
    colors = images.flatten(2).double()
    mean = colors.mean(2, keepdim=True)
    centered = colors - mean
    return mean, centered @ centered.mT / colors.shape[2]


def _symmetric_power(covariance: Tensor, power: float, least: float = 0.0) -> Tensor:
    """A power of symmetric matrices whose eigenvalues are raised to ``least`` first."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(least).pow(power).unsqueeze(-2) @ vectors.mT


def _check_image(x: Tensor, who: str) -> None:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{who} needs floating-point images in [0, 1]; got {got}. Convert with x.float() / 255 first")
    if x.ndim == 4 and x.shape[1] == 4:
        raise ValueError(
            f"{who} needs RGB images (B, 3, H, W); got four channels, shape {tuple(x.shape)}. Lay a picture with alpha "
            "over a background first: alpha * rgb + (1 - alpha) * background"
        )
    if x.ndim != 4 or x.shape[1] != 3 or not x.numel():
        raise ValueError(f"{who} needs RGB images (B, 3, H, W); got shape {tuple(x.shape)}")


def _check_pair(x: Tensor, y: Tensor, who: str) -> None:
    _check_image(x, who)
    _check_image(y, who)
    if len(y) not in (1, len(x)):
        raise ValueError(f"{who} needs as many images on both sides, or one on the second; got {len(x)} and {len(y)}")
