"""Feature extractors: exact preprocessing, unit vectors, one interface for both sizes, and kind errors."""

import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stylemoments import embed
from stylemoments.embed import CLIP, DINO, IMAGENET, OPENAI, TINY, Preprocess, lpips_features, scaled
from stylemoments.metrics import diversity, set_consistency, subject_fidelity
from stylemoments.world import NOWHERE, OBJECTS, STYLES, World, prompt


def random_images(n: int, height: int, width: int) -> torch.Tensor:
    """Noise in bytes from 90 to 164."""
    return torch.randint(90, 165, (n, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255


class Mean(nn.Module):
    """The mean color, as a network would see it."""

    def forward(self, images):
        return images.mean((-2, -1))


# ------------------------------------------------------------------------------------- preprocessing


def test_the_tiny_preprocessing_shifts_to_minus_one_and_one():
    images = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 3, 64, 64)
    torch.testing.assert_close(TINY(images)[:, 0, 0, 0], torch.tensor([-1.0, 0.0, 1.0]))


def test_the_crop_is_the_middle():
    """A row of 0 … 7 in a picture of 4 × 8: the middle half of the columns is 2 3 4 5."""
    row = torch.arange(8.0).expand(1, 3, 4, 8)
    plain = Preprocess(4, 4, (0, 0, 0), (1, 1, 1))
    torch.testing.assert_close(plain(row)[0, 0, 0], torch.tensor([2.0, 3, 4, 5]))


@pytest.mark.parametrize("preprocess", [OPENAI, IMAGENET], ids=["openai", "imagenet"])
@pytest.mark.parametrize("height, width", [(64, 64), (300, 517)])
def test_preprocessing_against_torchvision_and_pil(preprocess, height, width):
    """PIL rounds to bytes after each pass of its resize: two bytes of difference at most, over a deviation of 0.22.

    It also cuts off what overshoots between the passes, ours afterwards, so the picture here has none at the limits.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    image = random_images(1, height, width)
    pil = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    steps = [Resize(preprocess.resize, InterpolationMode.BICUBIC), CenterCrop(preprocess.crop), ToTensor()]
    theirs = Compose([*steps, Normalize(preprocess.mean, preprocess.std)])(pil)
    torch.testing.assert_close(preprocess(image)[0], theirs, atol=2 / 255 / 0.22, rtol=0)


def test_the_means_and_deviations_are_the_libraries():
    import open_clip
    import timm

    assert (OPENAI.mean, OPENAI.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    for name in embed.FULL_DINO:
        cfg = timm.get_pretrained_cfg(name)
        assert (IMAGENET.mean, IMAGENET.std) == (cfg.mean, cfg.std)
        assert (3, IMAGENET.crop, IMAGENET.crop) == cfg.input_size


@pytest.mark.parametrize("height, width", [(224, 224), (300, 517)])
def test_clips_preprocessing_is_the_librarys(height, width):
    """open_clip's own transform of a PIL picture, with the same two bytes of difference."""
    from open_clip.transform import image_transform

    image = random_images(1, height, width)
    pil = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    theirs = image_transform(224, is_train=False, mean=OPENAI.mean, std=OPENAI.std)(pil)
    torch.testing.assert_close(OPENAI(image)[0], theirs, atol=2 / 255 / 0.26, rtol=0)


def test_the_full_clip_has_the_activation_it_was_trained_with():
    import open_clip

    model, tag = embed.FULL_CLIP
    assert open_clip.get_model_config(model)["quick_gelu"] is open_clip.get_pretrained_cfg(model, tag)["quick_gelu"]


# ------------------------------------------------------------------------------------- features


def test_features_by_hand():
    """Mean colors 1, 0, 0 and 0.5, 0.5, 0: as unit vectors (1, 0, 0) and (1, 1, 0) / √2."""
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0], images[1, :2] = 1, 0.5
    features = DINO(Mean(), Preprocess(4, 4, (0, 0, 0), (1, 1, 1)))(images)
    torch.testing.assert_close(features, torch.tensor([[1, 0, 0], [0.5**0.5, 0.5**0.5, 0]]))


def test_batches_do_not_matter(monkeypatch):
    images, extractor = random_images(7, 8, 8), DINO(Mean(), Preprocess(8, 8, (0, 0, 0), (1, 1, 1)))
    whole = extractor(images)
    monkeypatch.setattr(embed, "BATCH", 3)
    torch.testing.assert_close(extractor(images), whole)
    assert whole.shape == (7, 3)


def test_the_full_sizes_run_with_random_weights(monkeypatch):
    """The classes and names are right, and nothing is fetched: the smallest relatives stand in."""
    import open_clip
    import timm

    small = {"embed_dim": 16, "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "patch_size": 32},
             "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
    asked = []
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: asked.append((a, k)) or open_clip.CLIP(**small))
    vit = timm.models.VisionTransformer(patch_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append((a, k)) or vit)
    clip, images = embed.clip("full"), random_images(2, 64, 80)
    features = [clip.images(images), clip.texts(["a cat", "a dog"]), embed.dino("full")(images)]
    assert [tuple(f.shape) for f in features] == [(2, 16), (2, 16), (2, 24)]
    for f in features:
        torch.testing.assert_close(f.norm(dim=-1), torch.ones(2))
    assert asked == [(("ViT-L-14-quickgelu",), {"pretrained": "openai"}),
                     (("vit_base_patch8_224.dino",), {"pretrained": True})]  # fmt: skip


def test_the_full_subject_is_the_dino_of_dreambooth(monkeypatch):
    import timm

    asked = []
    vit = timm.models.VisionTransformer(patch_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append((a, k)) or vit)
    assert embed.subject("full")(random_images(2, 64, 80)).shape == (2, 24)
    assert asked == [(("vit_small_patch16_224.dino",), {"pretrained": True})]


# ------------------------------------------------------------------------------------- LPIPS


def test_scaled_activations_by_hand():
    """Directions (3/5, 4/5) and (1, 0) at one of two positions, equal at the other: half of 0.4² + 0.8²."""
    here, same = torch.tensor([[3.0, 4.0], [5.0, 0.0]]), torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    maps = torch.stack([here, same], -1)[..., None]  # n c h w
    a, b = scaled([maps])
    assert (a - b).square().sum().item() == pytest.approx(0.8 / 2)
    a, b = scaled([maps, maps], [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])])
    assert (a - b).square().sum().item() == pytest.approx((0.16 + 2 * 0.64) / 2)


def test_scaled_activations_survive_zero_and_size():
    """A dead position stays 0, and ten times the activation is the same direction."""
    assert not scaled([torch.zeros(1, 3, 2, 2)]).any()
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled([10 * maps]), scaled([maps]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # lpips calls torchvision in a way that is to go
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distances_are_those_of_lpips(net):
    """Random weights stand in; the trained ones are not negative, so neither are these."""
    import lpips

    torch.manual_seed(0)
    model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    for layer in model.lins:
        layer.model[-1].weight.data.abs_()
    images = torch.rand(3, 3, 256, 256)
    features = lpips_features(model)(images).double()
    with torch.no_grad():
        theirs = [
            model(images[i : i + 1], images[j : j + 1], normalize=True).item() for i, j in [(0, 1), (0, 2), (1, 2)]
        ]
    ours = [(features[i] - features[j]).square().sum().item() for i, j in [(0, 1), (0, 2), (1, 2)]]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert diversity(features) == pytest.approx(np.mean(theirs), abs=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_tiny_perceptual_distance_is_lpips_without_channel_weights():
    """The package lpips has that baseline, too: its code runs here on the slim VGG."""
    import lpips

    from stylemoments.vgg import VGGFeatures

    class Slim(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = VGGFeatures()

        def forward(self, images):
            return [*self.features(images).values()]

    torch.manual_seed(0)
    model = lpips.LPIPS(net="alex", lpips=False, pnet_rand=True, verbose=False)
    model.net, model.scaling_layer, model.L = Slim(), nn.Identity(), 4
    images = torch.rand(2, 3, 64, 64)
    a, b = embed.perceptual()(images).double()
    with torch.no_grad():
        assert (a - b).square().sum().item() == pytest.approx(model(images[:1], images[1:]).item(), abs=1e-5)


def test_the_tiny_perceptual_distance_sees_a_blur():
    """A picture is nearer to a slightly lighter copy than to a blurred one, and that nearer than another picture."""
    first, other = torch.from_numpy(World(3).sample(2).images)
    lighter = first * 0.98 + 0.02
    blurred = torch.nn.functional.avg_pool2d(first[None], 3, 1, 1)[0]
    features = embed.perceptual()(torch.stack([first, lighter, blurred, other]))
    near, far, farther = (features[1:] - features[0]).square().sum(-1).tolist()
    assert 0 < near < far < farther


def test_perceptual_features_of_other_sizes():
    """The shorter side becomes 64 (or 256), and the middle is cut out."""
    images = random_images(1, 64, 96)
    torch.testing.assert_close(embed.perceptual()(images), embed.perceptual()(images[..., 16:80]))
    assert embed.LPIPS(images).shape == (1, 3, 256, 256)


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "library, function, load",
    [
        ("open_clip", "create_model", embed.clip),
        ("timm", "create_model", embed.dino),
        ("timm", "create_model", embed.subject),
        ("lpips", "LPIPS", embed.perceptual),
    ],
)
def test_without_a_network_full_says_what_to_do(monkeypatch, library, function, load):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(importlib.import_module(library), function, unreachable)
    with pytest.raises(ConnectionError, match='OSError.*once with a network.*size="tiny"') as caught:
        load("full")
    assert isinstance(caught.value.__cause__, OSError)


def test_without_lpips_the_perceptual_distance_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not there
    with pytest.raises(ModuleNotFoundError, match='lpips.*pip install lpips.*size="tiny"'):
        embed.perceptual("full")


@pytest.mark.parametrize("load", [embed.clip, embed.dino, embed.subject, embed.perceptual])
def test_an_unknown_size_is_refused(load):
    with pytest.raises(ValueError, match="tiny, full; got 'huge'"):
        load("huge")


def test_an_unknown_dino_is_refused():
    with pytest.raises(ValueError, match="vit_small_patch16_224.dino; got 'vit'"):
        embed.dino("full", name="vit")


def test_pictures_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]; got -1"):
        DINO(Mean(), TINY)(-torch.ones(1, 3, 64, 64))


def test_one_string_is_not_a_list_of_texts():
    with pytest.raises(TypeError, match=r"write \['a cat'\]"):
        CLIP(Mean(), TINY, list).texts("a cat")


# ------------------------------------------------------------------------------------- what ships


def test_the_shipped_clip_reads_and_sees():
    """Each picture finds its own text among all of one style or one object, nearly always."""
    clip, sample = embed.clip(), World(3).sample(150, split="train", place=NOWHERE)
    pairs = [(o, s) for o in OBJECTS for s in STYLES]
    found = (
        clip.images(torch.from_numpy(sample.images)) @ clip.texts([prompt(o, style=s) for o, s in pairs]).T
    ).argmax(-1)
    true = [(o, s) for o, s in zip(sample.objects, sample.styles, strict=True)]
    assert np.mean([pairs[i] == t for i, t in zip(found, true, strict=True)]) > 0.9


def test_the_shipped_dino_sees_style_and_object():
    """A set in one style is more alike than a mixed one; so is a set of one object, in plain pictures."""
    dino, world = embed.dino(), World(3)

    def consistency(**kind) -> float:
        return set_consistency(dino(torch.from_numpy(world.sample(80, place=NOWHERE, **kind).images)))

    mixed = consistency()
    assert all(consistency(style=style) > mixed + 0.05 for style in ("papercut art", "neon light", "line drawing"))
    plain = consistency(style="plain")
    assert all(consistency(style="plain", object=noun) > plain for noun in ("cat", "guitar", "sailboat"))


def test_the_shipped_subject_encoder_tells_subjects_apart():
    """Of 80 pictures of 16 drawings it never saw, the nearest other one shows the same thing, nearly always."""
    subjects = World(0).subjects()
    features = embed.subject()(torch.cat([torch.from_numpy(subject.images) for subject in subjects]))
    cosines = (features @ features.T).fill_diagonal_(-1)
    assert (cosines.argmax(-1) // 5 == torch.arange(80) // 5).float().mean() > 0.9
    first, second = features[:5], features[5:10]
    assert subject_fidelity(first, second) < 0.5 < set_consistency(first)
