"""Scenes have the statistics of photographs, and what may be asked about covers several times a budget of tokens."""

import numpy as np

from training.labels import shown
from training.world.scenes import SIDE

PATCH = 12


def mixed(drawn):
    """Ordinary scenes, and a quarter of cluttered ones, as in training."""
    return [*drawn["seen"], *drawn["cluttered"][:4]]


def luminance(scene):
    return scene.pixels.astype(float).mean(-1)


def test_the_power_spectrum_falls_with_the_square_of_the_frequency(drawn):
    """Photographs have a slope of about -2 (Field 1987)."""
    window = np.hanning(SIDE)[:, None] * np.hanning(SIDE)
    power = 0
    for scene in mixed(drawn):
        values = luminance(scene)
        power = power + np.abs(np.fft.fft2((values - values.mean()) * window)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIDE, 1 / SIDE)] * 2)).astype(int)
    mean = np.bincount(frequency.ravel(), power.ravel()) / np.bincount(frequency.ravel())
    range_of = np.arange(3, SIDE // 3)
    slope = np.polyfit(np.log(range_of), np.log(mean[range_of]), 1)[0]
    assert -2.3 < slope < -1.7


def test_most_patches_have_contrast(drawn):
    tiles = [
        luminance(scene).reshape(SIDE // PATCH, PATCH, -1, PATCH).swapaxes(1, 2).reshape(-1, PATCH**2)
        for scene in mixed(drawn)
    ]
    assert (np.concatenate(tiles).std(1) > 12).mean() > 0.6


def test_two_fifths_of_the_patches_show_something_that_can_be_asked_for(drawn):
    for name in ("seen", "cluttered"):
        shares = [(shown(scene, PATCH) >= 0).mean() for scene in drawn[name]]
        assert np.mean(shares) >= 0.4
        assert np.mean(shares) < 0.7


def test_nearly_every_thing_has_a_patch_of_its_own(drawn):
    scenes = mixed(drawn)
    found = [len(set(shown(scene, PATCH)) - {-1}) / len(scene.items) for scene in scenes]
    assert np.mean(found) > 0.95


def test_many_things_are_seen_on_one_or_two_patches(drawn):
    patches = []
    for scene in mixed(drawn):
        owner = shown(scene, PATCH)
        patches += np.bincount(owner[owner >= 0], minlength=len(scene.items)).tolist()
    few = np.mean(np.array(patches) <= 2)
    assert 0.35 < few < 0.8
    assert max(patches) >= 12
