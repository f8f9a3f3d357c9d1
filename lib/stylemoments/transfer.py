r"""Style transfer by losses: an image that is optimized, and a network that learns to do the same in one pass.

:func:`stylize_by_optimization` is Gatys, Ecker & Bethge, *Image Style Transfer Using Convolutional Neural Networks*,
2016 (arXiv 1508.06576): the pixels move until their features match the content and their Gram matrices the style.

:class:`TransferNet`, trained by :func:`train_feed_forward`, has the shape of Johnson, Alahi & Fei-Fei 2016
(1603.08155). Its norm is batch norm as there; or instance norm as in Ulyanov, Vedaldi & Lempitsky 2017 (1701.02096);
or conditional instance norm as in Dumoulin, Shlens & Kudlur 2017 (1610.07629), which keeps many styles in one network,
a row of scales and shifts for each.

Both make the same objective small, content + style + total variation, each times its weight. Images are RGB
``(B, 3, H, W)`` in [0, 1]. What differs from the papers:

- Losses are *relative* (:mod:`stylemoments.losses`): squared differences as a share of the target's own square,
  averaged over the layers. So the same weights serve the small VGG and VGG-19, and Grams however they are divided.
- The optimized image is put back into [0, 1] after each update, where the papers clip at the end: what you see is what
  was measured.
- The VGG pools by averages where you give its name. Gatys et al. recommend it for synthesis; Johnson takes maxima.
- Upsampling is nearest neighbors, then a convolution. Johnson's transposed convolutions reach some pixels more often
  than others and draw checkerboards: Odena, Dumoulin & Olah, *Deconvolution and Checkerboard Artifacts*, Distill 2016.
- The network ends in a sigmoid, as Dumoulin's, where Johnson's ends in a scaled tanh.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import losses, norms
from .color import coral, keep_luminance, luminance
from .vgg import STYLE_LAYERS, VGGFeatures

CONTENT_LAYERS = ("relu3_1",)  # Gatys: relu4_2 of VGG-19, which the small VGG lacks
RATES = {  # about how far a pixel may move in a step
    "lbfgs": 0.1,  # ours: without a limit, one run in nine flew off; with 0.02, most are slower
    "adam": 0.04,  # neural-style's 10, for pixels up to 256
}
HISTORY = 20  # updates that L-BFGS remembers; 100, torch's default, is no better and takes five times the memory

#: What a style is summarized by, and the loss that compares the summaries.
STYLES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gram": (losses.gram, partial(losses.gram_loss, reduction="relative")),
    "moments": (losses.mean_std, partial(losses.moment_loss, reduction="relative")),
}
COLORS = ("style", "coral", "luminance")
STARTS = ("content", "noise", "style")


@dataclass(frozen=True)
class Step:
    """Where an optimization stands. Image and losses belong together: the losses are those of this image."""

    step: int  # how many updates came before
    image: Tensor  # (B, 3, H, W) in [0, 1]
    losses: dict[str, float]  # "content", "style", "variation", each before its weight; "total" after


# ---------------------------------------------------------------------------------------- the objective


class _Objective:
    """Content + style + variation: features, how to compare them, and weights."""

    def __init__(
        self,
        vgg: VGGFeatures | str,
        content_layers: Sequence[str],
        style_layers: Sequence[str],
        style_loss: str,
        weights: Mapping[str, float],
        device: torch.device,
    ):
        _choose("style_loss", style_loss, STYLES)
        self.summarize, self.compare = STYLES[style_loss]
        self.content_layers, self.style_layers = tuple(content_layers), tuple(style_layers)
        needed = sorted({*content_layers, *style_layers})
        if isinstance(vgg, str):
            vgg = VGGFeatures(needed, weights=vgg, pooling="average").to(device)
        self.vgg = vgg
        if missing := [layer for layer in needed if layer not in vgg.layers]:
            raise ValueError(
                f"the VGG must return the content and style layers; it lacks {', '.join(missing)}. "
                f"Make it with VGGFeatures({needed}, …)"
            )
        self.weights = weights  # of "content", "style", "variation"

    @torch.no_grad()
    def content_targets(self, images: Tensor) -> dict[str, Tensor]:
        features = self.vgg(images)
        return {layer: features[layer] for layer in self.content_layers}

    @torch.no_grad()
    def style_targets(self, images: Tensor) -> dict[str, Tensor]:
        features = self.vgg(images)
        return {layer: self.summarize(features[layer]) for layer in self.style_layers}

    def __call__(
        self, images: Tensor, content: Mapping[str, Tensor], styles: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """The losses of images against targets; ``styles`` are pairs of weight and targets."""
        features = self.vgg(images)
        match = partial(losses.content_loss, reduction="relative")
        parts = {
            "content": losses.style_loss(features, content, loss=match) / len(content),
            "style": sum(weight * losses.style_loss(features, s, loss=self.compare) / len(s) for weight, s in styles),
            "variation": losses.total_variation(images),
        }
        return parts | {"total": sum(weight * parts[name] for name, weight in self.weights.items())}


def _numbers(parts: Mapping[str, Tensor], step: int) -> dict[str, float]:
    numbers = {name: part.item() for name, part in parts.items()}
    if not math.isfinite(numbers["total"]):
        raise FloatingPointError(f"the loss is {numbers['total']} at step {step}. Take a smaller rate, or Adam")
    return numbers


# ---------------------------------------------------------------------------------------- optimizing an image


def stylize_by_optimization(
    content: Tensor,
    style: Tensor | Sequence[Tensor],
    *,
    vgg: VGGFeatures | str = "tiny",
    content_layers: Sequence[str] = CONTENT_LAYERS,
    style_layers: Sequence[str] = STYLE_LAYERS,
    style_loss: str = "gram",
    content_weight: float = 1.0,
    style_weight: float = 30.0,
    variation_weight: float = 0.0,
    style_weights: Sequence[float] | None = None,
    optimizer: str = "lbfgs",
    rate: float | None = None,
    steps: int = 100,
    start: str = "content",
    color: str = "style",
    seed: int = 0,
) -> Iterator[Step]:
    """Optimize the pixels of an image until it shows the content in the style: Gatys' method, step by step.

    One step is one pass forward and back through the VGG and one update, with either optimizer, so that curves over
    steps compare work. (One step of ``torch.optim.LBFGS`` is up to 20 updates and 25 passes.) See :class:`LBFGS`.

    Args:
        content: ``(1, 3, H, W)``, sides of at least 16 pixels.
        style: ``(1, 3, h, w)`` of any size, or several. Strokes come out as large, in pixels, as they are here.
        vgg: the name of weights of :class:`VGGFeatures`, then with average pooling; or one that returns the layers
            below.
        content_layers, style_layers: of the VGG. Gatys: relu4_2; relu1_1, 2_1, 3_1, 4_1 and 5_1 of ``"vgg19"``.
        style_loss: ``"gram"`` as Gatys, or ``"moments"`` as AdaIN.
        content_weight, style_weight, variation_weight: of the parts. What counts is their ratio.
        style_weights: one number of 0 or more for each style, divided by their sum; None weighs them alike.
        optimizer: ``"lbfgs"`` as Gatys, or ``"adam"``.
        rate: of Adam, or the largest step of L-BFGS; None takes that of ``RATES``.
        steps: how many updates.
        start: from the ``"content"``, from ``"noise"`` (uniform), or from the (first) ``"style"``, resized.
        color: ``"style"`` lets the style bring its colors; ``"coral"`` and ``"luminance"`` keep those of the content,
            before and after, as in :mod:`stylemoments.color`. Luminance transfers between gray images, the style's
            with the mean and deviation of the content's.
        seed: of the noise.

    Returns:
        an iterator of ``steps + 1`` records; the first is the start.

    Raises:
        TypeError, ValueError: at the call, before the first step: another shape, name or number of weights.
        FloatingPointError: the loss left the finite numbers.

    Example:
        >>> content, style = torch.rand(2, 1, 3, 32, 32)
        >>> path = list(stylize_by_optimization(content, style, vgg="random", steps=5))
        >>> len(path), path[-1].losses["total"] < path[0].losses["total"]
        (6, True)
    """
    _choose("optimizer", optimizer, RATES)
    _choose("start", start, STARTS)
    _choose("color", color, COLORS)
    _at_least("steps", steps, 0)
    content, styles = _picture(content, "content"), _pictures(style, "style")
    weights = _shares(style_weights, len(styles))
    parts = {"content": content_weight, "style": style_weight, "variation": variation_weight}
    objective = _Objective(vgg, content_layers, style_layers, style_loss, parts, content.device)
    target, styles = _recolored(content, styles, color)
    image = _start(start, target, styles, seed)
    wanted = objective.content_targets(target)
    manners = [(weight, objective.style_targets(style)) for weight, style in zip(weights, styles, strict=True)]
    rate = RATES[optimizer] if rate is None else rate
    records = _optimize(image, lambda x: objective(x, wanted, manners), optimizer, rate, steps)
    if color != "luminance":
        return records
    return (Step(r.step, keep_luminance(r.image, content), r.losses) for r in records)


def _optimize(
    image: Tensor, measure: Callable[[Tensor], dict[str, Tensor]], optimizer: str, rate: float, steps: int
) -> Iterator[Step]:
    """Gradient steps on an image, kept in [0, 1]; ``measure`` returns the losses, "total" among them."""
    image = image.detach().clone().requires_grad_()
    update = LBFGS(image, rate) if optimizer == "lbfgs" else torch.optim.Adam([image], lr=rate)
    for step in range(steps + 1):
        parts = measure(image)
        yield Step(step, image.detach().clone(), _numbers(parts, step))
        if step < steps:
            # Times the number of pixels: those of a mean are small enough to drown in Adam's epsilon.
            (image.grad,) = torch.autograd.grad(parts["total"] * image.numel(), image)
            update.step()
            with torch.no_grad():
                image.clamp_(0, 1)


class LBFGS:
    r"""Limited-memory BFGS (Liu & Nocedal, Mathematical Programming 45, 1989): a Newton step without the Hessian.

    Two points and their gradients tell the curvature between them. From the last 20 such pairs, :math:`s` of moves and
    :math:`y` of changes of the gradient, the two loops below build the product of an approximate inverse Hessian with
    the gradient.

    What differs from ``torch.optim.LBFGS``: one gradient per step and no line search. Instead a step is shortened
    where its root mean square over the pixels exceeds ``rate``. And :math:`s` is the move that was made, not the one
    that was meant: others may put the image back into its bounds in between.

    Args:
        x: the leaf tensor to optimize; set ``x.grad`` before each step.
        rate: the longest step, a root mean square; a tenth of it while no curvature is known.

    Example:
        >>> x = torch.tensor([4.0, 1.0], requires_grad=True)
        >>> optimizer = LBFGS(x, rate=10.0)
        >>> for _ in range(12):
        ...     x.grad = torch.autograd.grad((torch.tensor([1.0, 50.0]) * x**2).sum(), x)[0]
        ...     optimizer.step()
        >>> x.abs().max().item() < 0.01
        True
    """

    def __init__(self, x: Tensor, rate: float):
        self.x, self.rate = x, rate
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)
        self.before: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Move ``x`` by what its gradient and the memory say."""
        here = self.x.flatten().clone(), self.x.grad.flatten().clone()
        if self.before:
            s, y = (now - then for now, then in zip(here, self.before, strict=True))
            if s @ y > 1e-6 * s.norm() * y.norm():  # curved upwards, or there is no minimum to head for
                self.pairs.append((s, y))
        self.before = here
        move = self._direction(here[1])
        longest = self.rate if self.pairs else self.rate / 10
        size = move.square().mean().sqrt()
        self.x += (move * (longest / size.clamp_min(longest))).view_as(self.x)

    def _direction(self, gradient: Tensor) -> Tensor:
        """Minus the approximate inverse Hessian times the gradient."""
        move, shares = -gradient, []
        for s, y in reversed(self.pairs):
            shares.append(s @ move / (s @ y))
            move = move - shares[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            move = move * (s @ y) / (y @ y)
        for (s, y), share in zip(self.pairs, reversed(shares), strict=True):
            move = move + (share - y @ move / (s @ y)) * s
        return move


def _recolored(content: Tensor, styles: list[Tensor], color: str) -> tuple[Tensor, list[Tensor]]:
    """Content and styles as the transfer should see them."""
    if color == "coral":
        return content, [coral(style, content).clamp(0, 1) for style in styles]
    if color == "luminance":
        gray = luminance(content)
        styles = [norms.adain(luminance(style), gray).clamp(0, 1).repeat(1, 3, 1, 1) for style in styles]
        return gray.repeat(1, 3, 1, 1), styles
    return content, styles


def _start(start: str, content: Tensor, styles: list[Tensor], seed: int) -> Tensor:
    if start == "noise":
        return torch.rand(content.shape, generator=torch.Generator().manual_seed(seed)).to(content)
    if start == "style":
        resized = F.interpolate(styles[0], content.shape[2:], mode="bilinear", antialias=True, align_corners=False)
        return resized.clamp(0, 1)
    return content


# ---------------------------------------------------------------------------------------- the feed-forward network


NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "batch": lambda channels, styles: norms.BatchNorm2d(channels),
    "instance": lambda channels, styles: norms.InstanceNorm2d(channels, affine=True),
    "conditional": norms.ConditionalInstanceNorm2d,
}


class _Layer(nn.Module):
    """Nearest upsampling if asked, a convolution padded by reflection, a norm, a ReLU if asked."""

    def __init__(
        self, channels: int, out: int, norm: Callable[[int], nn.Module], kernel: int = 3, *,
        stride: int = 1, upsample: bool = False, relu: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.upsample, self.relu = upsample, relu
        # No bias: the norm would subtract it again.
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, padding_mode="reflect", bias=False)
        self.norm = norm(out)

    def forward(self, x: Tensor, style: tuple) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.norm(self.conv(x), *style)
        return F.relu(x) if self.relu else x


class _Residual(nn.Module):
    """Two layers beside a shortcut, without a ReLU after the sum (Gross & Wilber 2016, as Johnson has it)."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.layer1 = _Layer(channels, channels, norm)
        self.layer2 = _Layer(channels, channels, norm, relu=False)

    def forward(self, x: Tensor, style: tuple) -> Tensor:
        return x + self.layer2(self.layer1(x, style), style)


class TransferNet(nn.Module):
    """Stylizes an image in one pass.

    Fresh weights come from torch's global generator: seed it with ``torch.manual_seed`` to get the same network again.

    Args:
        norm: ``"batch"`` (Johnson), ``"instance"`` (Ulyanov) or ``"conditional"`` (Dumoulin), behind every convolution
            but the last.
        styles: how many rows each conditional norm has; 1 for the other norms.
        width: channels of the first layer; 32 in the paper.
        blocks: residual blocks at a quarter of the resolution; 5 in the paper.

    Raises:
        ValueError: another norm, or several styles for a norm that holds one.

    Example:
        >>> TransferNet("instance")(torch.rand(1, 3, 37, 53)).shape  # any size of 8 pixels or more
        torch.Size([1, 3, 37, 53])
    """

    def __init__(self, norm: str = "instance", *, styles: int = 1, width: int = 16, blocks: int = 3):
        super().__init__()
        _choose("norm", norm, NORMS)
        if styles < 1 or (styles > 1 and norm != "conditional"):
            raise ValueError(
                f'a network holds one style, or with norm="conditional" one or more; got {styles} for {norm!r}'
            )
        self.conditional = norm == "conditional"

        def make(channels: int) -> nn.Module:
            return NORMS[norm](channels, styles)

        self.layers = nn.ModuleList([
            _Layer(3, width, make, 9),
            _Layer(width, 2 * width, make, stride=2),
            _Layer(2 * width, 4 * width, make, stride=2),
            *(_Residual(4 * width, make) for _ in range(blocks)),
            _Layer(4 * width, 2 * width, make, upsample=True),
            _Layer(2 * width, width, make, upsample=True),
        ])  # fmt: skip
        self.last = nn.Conv2d(width, 3, 9, padding=4, padding_mode="reflect")

    @property
    def styles(self) -> int:
        """How many styles the network holds."""
        return len(self._matrices()[0]) if self.conditional else 1

    def forward(self, images: Tensor, style: int | Tensor | None = None) -> Tensor:
        """Stylize images.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1], sides of at least 8 pixels.
            style: with conditional norms an index, one index per image ``(B,)``, or float weights ``(styles,)`` or
                ``(B, styles)`` that blend the rows of styles; may be left out where there is one style. None otherwise.

        Returns:
            images of the same size, in (0, 1).

        Raises:
            ValueError: another shape; a style missing, or given to a network that holds one.
            IndexError: a style that has no row.
        """
        style = self._style(style)
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 3 or min(height, width) < 8:
            raise ValueError(f"images must be (B, 3, H, W) with H and W at least 8; got shape {tuple(images.shape)}")
        x = F.pad(images, (0, -width % 4, 0, -height % 4), mode="reflect")  # two halvings must come out even
        for layer in self.layers:
            x = layer(x, style)
        return torch.sigmoid(self.last(x))[..., :height, :width]

    def _style(self, style: int | Tensor | None) -> tuple:
        """What each norm gets beside the features."""
        if not self.conditional:
            if style is not None:
                raise ValueError('this network holds one style; leave style out, or make it with norm="conditional"')
            return ()
        if style is None and self.styles > 1:
            raise ValueError(f"say which style: an index from 0 to {self.styles - 1}, or weights that blend")
        return (0 if style is None else style,)

    # ------------------------------------------------------------------------------------ rows of styles

    def _matrices(self) -> list[nn.Parameter]:
        """Scale and shift of every conditional norm, (styles, C) each."""
        if not self.conditional:
            raise ValueError('only a network with norm="conditional" has rows of styles')
        conditional = [m for m in self.modules() if isinstance(m, norms.ConditionalInstanceNorm2d)]
        return [matrix for norm in conditional for matrix in (norm.weight, norm.bias)]

    def rows(self, style: int) -> list[Tensor]:
        """The scales and shifts of one style: a ``(C,)`` view of each parameter that holds styles.

        Changing a view in place changes that style and nothing else in the network. There are 2·C numbers per norm.

        Raises:
            ValueError: the norms are not conditional.
            IndexError: a style that has no row.
        """
        matrices = self._matrices()
        if not 0 <= style < self.styles:
            raise IndexError(f"styles run from 0 to {self.styles - 1}; got {style}")
        return [matrix.data[style] for matrix in matrices]

    @torch.no_grad()
    def add_style(self) -> int:
        """Grow every conditional norm by one row; the other rows keep their values bit for bit.

        The new row is the mean of the others: the network then draws a blend of its styles from the start, where the
        scale 1 and shift 0 of a fresh norm mean nothing to trained convolutions. (That start is a little better; after
        some thirty steps of training the two are alike.) Train it with ``train_feed_forward(..., only_style=index)``.
        An optimizer made before does not know the grown parameters.

        Returns:
            the index of the new style.

        Raises:
            ValueError: the norms are not conditional.

        Example:
            >>> net = TransferNet("conditional", styles=2)
            >>> net.add_style(), net.styles
            (2, 3)
        """
        self._matrices()  # or an error
        for norm in self.modules():
            if isinstance(norm, norms.ConditionalInstanceNorm2d):
                norm.weight = nn.Parameter(torch.cat([norm.weight, norm.weight.mean(0, keepdim=True)]))
                norm.bias = nn.Parameter(torch.cat([norm.bias, norm.bias.mean(0, keepdim=True)]))
        return self.styles - 1


# ---------------------------------------------------------------------------------------- training it


def train_feed_forward(
    net: TransferNet,
    photographs: Tensor | Sequence[Tensor],
    styles: Tensor | Sequence[Tensor],
    *,
    vgg: VGGFeatures | str = "tiny",
    content_layers: Sequence[str] = CONTENT_LAYERS,
    style_layers: Sequence[str] = STYLE_LAYERS,
    style_loss: str = "gram",
    content_weight: float = 1.0,
    style_weight: float = 10.0,
    variation_weight: float = 0.0,
    only_style: int | None = None,
    steps: int = 500,
    batch: int = 4,
    crop: int = 96,
    rate: float = 1e-3,
    seed: int = 0,
) -> Iterator[Step]:
    """Train a network to stylize, with Adam, on random crops of photographs.

    It changes ``net`` while you iterate, and leaves it in eval mode at the end. A network with conditional norms gets
    a style at random for each crop.

    Args:
        net: what learns.
        photographs: ``(n, 3, H, W)``, or a sequence of images of any sizes; no side below ``crop``.
        styles: the style image ``(1, 3, h, w)``, or one for each of ``net.styles``; with ``only_style``, that one.
        vgg, content_layers, style_layers, style_loss, content_weight, style_weight, variation_weight: the objective,
            as in :func:`stylize_by_optimization`.
        only_style: train the rows of this style alone. Every other number in the network, the other rows included,
            stays as it is, bit for bit.
        steps, batch, rate: of Adam; Johnson's are 40000, 4 and 1e-3.
        crop: side of the crops in pixels; Johnson's is 256.
        seed: of the crops and of the styles drawn.

    Returns:
        an iterator of ``steps`` records. Image and losses are those of a batch *before* its update, which follows when
        you ask for the next record.

    Raises:
        TypeError, ValueError, IndexError: at the call: other shapes, names, numbers of styles; a photograph that is
            too small.
        FloatingPointError: the loss left the finite numbers.

    Example:
        >>> net, photographs, style = TransferNet(width=4, blocks=1), torch.rand(2, 3, 32, 32), torch.rand(1, 3, 32, 32)
        >>> [s.step for s in train_feed_forward(net, photographs, style, vgg="random", steps=2, crop=16)]
        [0, 1]
    """
    for name, number, least in (("steps", steps, 0), ("batch", batch, 1), ("crop", crop, 8)):
        _at_least(name, number, least)
    photographs, styles = _pictures(photographs, "photographs"), _pictures(styles, "styles")
    needed = 1 if only_style is not None else net.styles
    if len(styles) != needed:
        raise ValueError(f"train_feed_forward needs {needed} style images here, one for each style; got {len(styles)}")
    if small := [tuple(p.shape) for p in photographs if min(p.shape[2:]) < crop]:
        raise ValueError(f"photographs must be at least as large as a crop of {crop} pixels; got {small[0]}")
    learner = _Learner(net, only_style, rate)
    parts = {"content": content_weight, "style": style_weight, "variation": variation_weight}
    objective = _Objective(vgg, content_layers, style_layers, style_loss, parts, learner.device)
    each = [objective.style_targets(style.to(learner.device)) for style in styles]
    targets = {layer: torch.cat([target[layer] for target in each]) for layer in each[0]}  # a row for each style
    batches = _batches(photographs, len(styles), batch, crop, steps, seed)
    return _train(learner, objective, targets, batches)


class _Learner:
    """A network and Adam for all of it, or for the rows of one style."""

    def __init__(self, net: TransferNet, only_style: int | None, rate: float):
        self.net, self.only_style = net, only_style
        if only_style is None:
            self.sources = self.parameters = [p for p in net.parameters() if p.requires_grad]
        else:
            # Adam must not see whole matrices: its momentum would move rows whose gradient is zero.
            self.parameters, self.sources = net.rows(only_style), net._matrices()
        self.device = self.sources[0].device
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        self.net.train()
        style = drawn if self.only_style is None else self.only_style
        return self.net(images, style if self.net.conditional else None)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        whole = torch.autograd.grad(loss, self.sources)
        return [g if self.only_style is None else g[self.only_style] for g in whole]

    def update(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()


def _train(
    learner: _Learner, objective: _Objective, targets: Mapping[str, Tensor], batches: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[Step]:
    for step, (crops, drawn) in enumerate(batches):
        crops, drawn = crops.to(learner.device), drawn.to(learner.device)
        images = learner(crops, drawn)
        style = {layer: target[drawn] for layer, target in targets.items()}  # a style for each image
        parts = objective(images, objective.content_targets(crops), [(1.0, style)])
        gradients = learner.gradients(parts["total"])
        yield Step(step, images.detach(), _numbers(parts, step))
        learner.update(gradients)
    learner.net.eval()


def _batches(
    photographs: Sequence[Tensor], styles: int, batch: int, crop: int, steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random crops (batch, 3, crop, crop) of random photographs, with random styles (batch,)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    for _ in range(steps):
        crops = []
        for _ in range(batch):
            photograph = photographs[draw(len(photographs))][0]  # 3 H W
            top, left = (draw(side - crop + 1) for side in photograph.shape[1:])
            crops.append(photograph[:, top : top + crop, left : left + crop])
        drawn = torch.randint(styles, (batch,), generator=generator)
        yield torch.stack(crops).contiguous(memory_format=torch.channels_last), drawn  # a third faster on a CPU


# ---------------------------------------------------------------------------------------- checks


def _choose(what: str, got: str, options) -> None:
    if got not in options:
        raise ValueError(f"{what} must be one of {', '.join(options)}; got {got!r}")


def _at_least(what: str, got: int, least: int) -> None:
    if got < least:
        raise ValueError(f"{what} must be at least {least}; got {got}")


def _picture(image: Tensor, what: str) -> Tensor:
    if not (isinstance(image, Tensor) and image.is_floating_point()):
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"{what} must be floating point in [0, 1]; got {got}. Convert with x.float() / 255 first")
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"{what} must be one RGB image (1, 3, H, W); got shape {tuple(image.shape)}")
    return image


def _pictures(images: Tensor | Sequence[Tensor], what: str) -> list[Tensor]:
    """One image each, from a tensor (n, 3, H, W) or a sequence."""
    if isinstance(images, Tensor) and images.ndim == 4:
        images = images.split(1)
    pictures = [_picture(image, f"each of {what}") for image in images]
    if not pictures:
        raise ValueError(f"{what} must be one image or more; got none")
    return pictures


def _shares(weights: Sequence[float] | None, n: int) -> list[float]:
    """Weights that sum to 1."""
    weights = [1.0] * n if weights is None else [float(weight) for weight in weights]
    if len(weights) != n or not all(0 <= w < math.inf for w in weights) or not sum(weights):
        raise ValueError(f"style_weights must be {n} finite numbers of 0 or more, not all 0; got {weights}")
    return [weight / sum(weights) for weight in weights]
