"""Before any question is asked, visual tokens lie near the words for what their patches show."""

import numpy as np
import pytest
import torch

from feathervlm import embedded
from feathervlm.embedded.scenes import COLOURS, SHAPES, draw
from training import align, words
from training.build import Size, build_model
from training.vision import DENSE, dense_labels, to_pixels


@pytest.mark.full
def test_the_projector_learns_the_words_of_each_patch():
    model = build_model(Size(layers=1), 0)
    model.model.vision_tower.load_state_dict(embedded.load()[0].model.vision_tower.state_dict())
    words.begin_with_words(model, 0, scenes=64, steps=200)
    scenes = [draw(np.random.default_rng([9, i])) for i in range(8)]
    with torch.no_grad():
        tokens = model.model.multi_modal_projector(align.see(model, to_pixels(scenes))).flatten(0, 1)
    labels = torch.cat([torch.from_numpy(dense_labels(scene, 8)) for scene in scenes])
    on = labels[:, 1] < len(SHAPES)
    known = model.model.language_model.embed_tokens.weight.detach()
    for name, kinds in (("colour", COLOURS), ("shape", SHAPES)):
        nearest = (tokens[on] @ words.embed(known, kinds).T).argmax(1)
        assert (nearest == labels[on, list(DENSE).index(name)]).float().mean() > 0.8, name


def test_what_a_patch_is_to_say_is_what_lies_on_it():
    known = torch.nn.functional.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)))
    scene = draw(np.random.default_rng(4))
    says, on = words.patch_words(scene, known, 8)
    assert says.shape == (256, 64)
    background = words.embed(known, [scene.background])[0]
    assert torch.equal(says[~on], background.expand(int((~on).sum()), -1))
    for item in scene.items:
        x, y = (int(value) // 8 for value in item.centre)
        token = says[16 * y + x]
        for said, kinds in ((item.colour, COLOURS), (item.shape, SHAPES)):
            near = words.embed(known, kinds) @ token
            assert list(kinds)[near.argmax()] == said
