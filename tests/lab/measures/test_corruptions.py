"""Corruptions: their formulas where they have a closed form, their seeds, and that no batch matters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from torchcbl.lab.measures.disturb import digital, filters, noises, weather
from torchcbl.lab.measures.disturb.blurs import scale_of
from torchcbl.lab.measures.disturb.catalogue import CORRUPTIONS, SEVERITIES, corrupt
from torchcbl.lab.measures.disturb.draws import randoms

RNG = np.random.default_rng(0)
COLOUR = np.rint(255 * ndimage.gaussian_filter(RNG.random((6, 32, 32, 3)), (0, 2, 2, 0))).astype(np.uint8)
COLOUR = np.clip(4 * (COLOUR.astype(int) - 127) + 127, 0, 255).astype(np.uint8)  # as much contrast as photographs
GREY = np.ascontiguousarray(COLOUR[:, ::4, ::4, :1])
FLAT = np.full((1, 16, 16, 3), 0.5)


def drawn(name: str, count: int = 1) -> list[np.random.RandomState]:
    return randoms(name, 0, range(count))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_the_same_in_every_batch_and_another_for_every_image(name: str) -> None:
    for severity in (1, 5):
        whole = corrupt(COLOUR, name, severity, range(6))
        assert whole.dtype == np.uint8
        assert whole.shape == COLOUR.shape
        assert (whole != COLOUR).any()
        backwards = np.concatenate([corrupt(COLOUR[i : i + 1], name, severity, [i]) for i in reversed(range(6))])
        assert np.array_equal(whole, backwards[::-1])
    twice = corrupt(COLOUR[:1].repeat(2, 0), name, 5, [0, 1])
    random = name not in ("brightness", "contrast", "saturate", "jpeg_compression", "pixelate", "defocus_blur")
    random = random and name not in ("gaussian_blur", "zoom_blur")
    assert (twice[0] != twice[1]).any() == random


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_small_grey_images_too(name: str) -> None:
    if CORRUPTIONS[name].colour:
        with pytest.raises(ValueError, match=f"{name} needs three channels of colour, the images have 1: leave it out"):
            corrupt(GREY, name, 1, range(6))
    else:
        for severity in SEVERITIES:
            assert corrupt(GREY, name, severity, range(6)).shape == (6, 8, 8, 1)


def test_the_catalogue_is_the_published_one() -> None:
    assert sum(one.standard for one in CORRUPTIONS.values()) == 15
    assert len(CORRUPTIONS) == 19
    assert {len(one.levels) for one in CORRUPTIONS.values()} == {5}
    assert {one.group for one in CORRUPTIONS.values()} == {"noise", "blur", "weather-like", "digital"}
    assert [name for name in CORRUPTIONS if name.endswith("_like")] == ["frost_like", "spatter_like"]


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("saturate", "frost_like")])
def test_severity_hurts(name: str) -> None:
    # Not of all: published severities of glass blur, spatter and elastic transform are no order of pixel differences.
    distance = [np.abs(corrupt(COLOUR, name, s, range(6)).astype(int) - COLOUR).mean() for s in (1, 3, 5)]
    if name not in ("glass_blur", "spatter_like", "elastic_transform"):
        assert distance[0] < distance[1] < distance[2]


def test_unknown_names_and_severities() -> None:
    with pytest.raises(ValueError, match="no corruption 'rain' of severity 1: there are gaussian_noise, "):
        corrupt(COLOUR, "rain", 1, range(6))
    with pytest.raises(ValueError, match="no corruption 'fog' of severity 6"):
        corrupt(COLOUR, "fog", 6, range(6))


class TestNoises:
    big = np.full((1, 200, 200, 3), 0.4)

    def test_moments(self) -> None:
        gaussian = noises.gaussian_noise(self.big, drawn("a"), 0.1)
        assert gaussian.mean() == pytest.approx(0.4, abs=2e-3)
        assert gaussian.std() == pytest.approx(0.1, rel=0.02)
        shot = noises.shot_noise(self.big, drawn("b"), 50)
        assert shot.mean() == pytest.approx(0.4, abs=2e-3)
        assert shot.var() == pytest.approx(0.4 / 50, rel=0.03)
        assert noises.speckle_noise(self.big, drawn("c"), 0.2).std() == pytest.approx(0.08, rel=0.02)

    def test_salt_and_pepper(self) -> None:
        found = noises.impulse_noise(self.big, drawn("d"), 0.06)
        assert (found == 0).mean() == pytest.approx(0.03, rel=0.05)
        assert (found == 1).mean() == pytest.approx(0.03, rel=0.05)
        assert (found == 0.4).mean() == pytest.approx(0.94, rel=0.01)

    def test_jitter_takes_values_from_nearby_only(self) -> None:
        rows, columns = np.mgrid[:12, :12]
        places = np.stack([rows, columns], -1)[None].astype(float)
        moved = noises.jittered(places, drawn("e"), 1, 1)
        offset = np.abs(moved - places)
        assert offset.max() == 1
        assert (offset[0, 0] == 0).all(), "the border stays"
        assert (offset[0, 1:-1, 1:-1] != 0).any(-1).mean() == pytest.approx(8 / 9, abs=0.1)


class TestFilters:
    def test_a_disk_that_is_a_point_is_the_smoothing_alone(self) -> None:
        line = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 0.4**2))
        kernel = filters.disk(0.3, 0.4)
        assert kernel[1:-1, 1:-1] == pytest.approx(np.outer(line, line) / line.sum() ** 2)

    @pytest.mark.parametrize(("radius", "pixels"), [(1.0, 5), (1.5, 9), (2.0, 13)])
    def test_a_disk_has_the_pixels_of_a_disk(self, radius: float, pixels: int) -> None:
        assert filters.disk(radius, 1e-3).max() == pytest.approx(1 / pixels)

    def test_blurs_keep_what_is_flat(self) -> None:
        for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "elastic_transform"):
            one = CORRUPTIONS[name]
            assert one.apply(FLAT, drawn(name), *one.levels[4]) == pytest.approx(FLAT), name

    def test_sampling_on_pixels_gives_them_back_and_between_them_a_line(self) -> None:
        ramp = np.arange(5.0)[None, :, None, None].repeat(4, 2)
        rows, columns = np.mgrid[:5, :4].astype(float)
        assert filters.sample(ramp, rows[None], columns[None]) == pytest.approx(ramp)
        assert filters.sample(ramp, rows[None, :4] + 0.25, columns[None, :4]) == pytest.approx(ramp[:, :4] + 0.25)

    def test_beyond_the_border_images_are_mirrored(self) -> None:
        ramp = np.arange(5.0)[None, :, None, None]
        found = filters.sample(ramp, np.array([-1.0, -2.5, 5.0, 9.0])[None, :, None], np.zeros((1, 4, 1)))
        assert found[0, :, 0, 0].tolist() == [1.0, 2.5, 3.0, 1.0]

    def test_zoom_keeps_the_centre_and_magnifies(self) -> None:
        ramp = np.arange(9.0)[None, :, None, None].repeat(9, 2)
        found = filters.zoom(ramp, 2.0)
        assert found[0, 4, 4, 0] == 4.0
        assert found[0, :, 0, 0] == pytest.approx(4 + (np.arange(9) - 4) / 2)
        assert filters.zoom(ramp, 1.0) == pytest.approx(ramp)

    def test_a_smear_goes_one_way_along_its_direction(self) -> None:
        point = np.zeros((3, 15, 15, 1))
        point[:, 7, 7] = 1
        found = filters.smear(point, 6, 2.0, np.array([0.0, 90.0, -90.0]))
        weights = np.exp(-(np.arange(13) ** 2) / 8)
        weights = weights[weights > 1e-3] / weights[weights > 1e-3].sum()
        assert found[0, 7, 7::-1, 0][: len(weights)] == pytest.approx(weights)
        assert found[1, 7::-1, 7, 0][: len(weights)] == pytest.approx(weights)
        assert found[2, 7:, 7, 0][: len(weights)] == pytest.approx(weights)
        assert found.sum((1, 2, 3)) == pytest.approx(1.0)

    def test_clouds_fill_the_range_and_are_smooth_where_the_decay_is_large(self) -> None:
        noise = np.stack([r.uniform(-1, 1, (32, 32)) for r in drawn("f", 20)])
        rough, smooth = filters.clouds(noise, 1.2), filters.clouds(noise, 3.0)
        for field in (rough, smooth):
            assert field.min((1, 2)) == pytest.approx(0.0)
            assert field.max((1, 2)) == pytest.approx(1.0)
        assert np.abs(np.diff(smooth, axis=1)).mean() < 0.5 * np.abs(np.diff(rough, axis=1)).mean()

    def test_clouds_without_noise_but_at_the_centre(self) -> None:
        noise = np.zeros((1, 4, 4))
        noise[0, 2, 2] = 1.0
        field = filters.clouds(noise, 2.0)[0]
        # The centre is 1, the corner 0; edge middles are the mean of two corners and twice the centre, joined edges.
        assert field[2, 2] == 1.0
        assert field[0, 0] == 0.0
        assert field[0, 2] == field[2, 0] == 0.5
        assert field[1, 1] == pytest.approx((1.0 + 0.0 + 0.5 + 0.5) / 4)

    @pytest.mark.parametrize(("size", "side"), [(8, 8), (32, 32), (33, 64), (2, 2)])
    def test_the_clouds_cover_the_image(self, size: int, side: int) -> None:
        assert filters.side_of(size, size // 2) == side


class TestColours:
    def test_brightness_raises_value_and_keeps_hue_and_saturation(self) -> None:
        x = np.array([[[[0.2, 0.4, 0.1], [0.0, 0.0, 0.0]]]])
        found = digital.brightness(x, [], 0.2)
        assert found[0, 0, 0] == pytest.approx([0.3, 0.6, 0.15])
        assert found[0, 0, 1] == pytest.approx([0.2, 0.2, 0.2])
        assert digital.brightness(np.full((1, 1, 1, 1), 0.9), [], 0.3) == pytest.approx(1.0)

    @pytest.mark.parametrize(("factor", "more"), [(0.3, 0), (2.5, 0.2)])
    def test_hsv_against_colorsys(self, factor: float, more: float) -> None:
        import colorsys

        x = RNG.random((1, 5, 5, 3))
        x[0, 0, 0] = 0.4  # grey counts as red
        expected = []
        for pixel in x.reshape(-1, 3):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb(h, min(1.0, s * factor + more), v))
        assert digital.saturate(x, [], factor, more).reshape(-1, 3) == pytest.approx(np.array(expected))
        brighter = [
            colorsys.hsv_to_rgb(h, s, min(1, v + more))
            for h, s, v in (colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3))
        ]
        assert digital.brightness(x, [], more).reshape(-1, 3) == pytest.approx(np.array(brighter))

    def test_contrast_keeps_the_mean_and_scales_the_spread(self) -> None:
        x = RNG.random((2, 8, 8, 3))
        found = digital.contrast(x, [], 0.4)
        assert found.mean((1, 2)) == pytest.approx(x.mean((1, 2)))
        assert found.std((1, 2)) == pytest.approx(0.4 * x.std((1, 2)))

    def test_fog_keeps_the_maximum_where_it_is_thickest(self) -> None:
        white = np.full((1, 16, 16, 3), 0.8)
        found = weather.fog(white, drawn("g"), 1.0, 2.0)
        assert found.max() == pytest.approx(0.8 * 1.8 / 1.8)
        assert found.min() == pytest.approx(0.8 * 0.8 / 1.8)

    def test_pixelate_averages_boxes(self) -> None:
        x = np.zeros((1, 4, 4, 1))
        x[0, ::2] = 1.0
        assert digital.pixelate(x, [], 0.5) == pytest.approx(np.full_like(x, 0.5), abs=1 / 255)

    def test_an_affine_map_takes_three_points_where_it_should(self) -> None:
        source = np.array([[[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]]])
        goal = np.array([[2.0, 2.0], [5.0, 1.0], [-1.0, 4.0]])
        map_ = digital._affine(source, goal)[0, 0]
        assert np.concatenate([source[0], np.ones((3, 1))], 1) @ map_ == pytest.approx(goal)

    def test_elastic_without_strength_is_the_affine_map_of_its_corners(self) -> None:
        x = RNG.random((2, 12, 12, 1))
        assert digital.elastic_transform(x, drawn("h", 2), 0, 0, 0) == pytest.approx(x)

    def test_lengths_grow_with_larger_images_and_never_shrink(self) -> None:
        assert [scale_of(np.zeros((1, size, size, 1))) for size in (8, 32, 96)] == [1.0, 1.0, 3.0]
