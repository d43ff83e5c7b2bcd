"""The recipe of the embedded weights: sizes, steps, learning rates and questions of every stage."""

from dataclasses import dataclass, field

from training.build import Size
from training.loop import Plan
from training.questions import Asked
from training.text import Mix

LOOKING = Asked(
    {"locate": 12, "place": 4, "attribute": 2, "background": 1},
    captions=4,
    points=4,
    coordinates=(0.6, 0.8, 0.4, 0.4),
)
"""The questions of the first part of stage 3, most of which ask for one thing.

Once the left edge is known, the thing has been found; the top edge is learned after it.
"""
ALL = Asked(
    {
        "locate": 6,
        "relation": 5,
        "place": 3,
        "reading": 4,
        "attribute": 4,
        "counting": 4,
        "existence": 4,
        "spatial": 7,
        "background": 1,
    },
    captions=3,
    points=4,
    coordinates=(0.6, 0.8, 0.4, 0.4),
)


@dataclass(frozen=True)
class Early:
    """What early layers are taught by heads of their own, which are not used later.

    The first layers of large language models join words to phrases (arXiv 2406.19384); here a head names the last words
    in any order. Another head answers, so that what is asked for is looked up in the layers before it (deep
    supervision, arXiv 1409.5185).

    Attributes:
        bag_layer: Number of layers below the head that names words.
        bag_words: Number of last words that it names.
        bag_weight: Weight of its loss in stage 2.
        answer_layer: Number of layers below the head that answers.
        answer_weight: Weight of its loss in stage 2 and in the first part of stage 3.
        until: Share of stage 3 in which the head answers.
    """

    bag_layer: int = 2
    bag_words: int = 10
    bag_weight: float = 0.5
    answer_layer: int = 5
    answer_weight: float = 0.3
    until: float = 0.35


@dataclass(frozen=True)
class Recipe:
    """The plans of all stages.

    Attributes:
        name: Name of the recipe, which identifies a run together with the seed.
        size: Dimensions of the model before layers are taken out.
        vision: Plan of stage 1.
        vision_batch: Scenes per step of stage 1.
        language: Plan of stage 2.
        language_batch: Sequences per step of stage 2.
        align: Plan of stage 3.
        tune: Plan of stage 5.
        images: Images per step of stages 3 and 5, of all processes together.
        frozen: Number of first decoder layers that stage 3 does not change.
        recall_first: Number of first steps of stage 2 with nothing but repeated phrases (`text.recall`).
        text: Mix of the other text of stage 2.
        early: Additional losses of early layers.
        earliest: Share of the depth at which the lookup should begin at the latest (see `cut.choose`).
        least_layers: Smallest number of layers that stay.
        useless: Share of the held-out loss by which a layer has to lower it; others are taken out.
        looking: Share of stage 3 with the questions `LOOKING`.
        curriculum: Shares of stage 3 after which scenes may have more things (see `questions.CURRICULUM`).
    """

    name: str
    size: Size
    vision: Plan
    vision_batch: int
    language: Plan
    language_batch: int
    align: Plan
    tune: Plan
    images: int
    frozen: int = 2
    recall_first: int = 250
    text: Mix = field(default_factory=lambda: Mix(recall=0.1, bursty=0.3, questions=(10, 21)))
    early: Early = field(default_factory=Early)
    earliest: float = 0.4
    least_layers: int = 12
    useless: float = 0.02
    looking: float = 0.22
    curriculum: tuple[float, ...] = (0.05, 0.11, 0.3, 0.42, 0.55)

    def run(self, seed: int) -> str:
        """Return the name that identifies a run of this recipe and seed."""
        return f"{self.name} seed {seed}"


EMBEDDED = Recipe(
    name="embedded",
    size=Size(),
    vision=Plan(steps=6000, matrix_rate=4e-3, other_rate=2e-3, flat=0.3),
    vision_batch=16,
    language=Plan(steps=1600, matrix_rate=5e-3, other_rate=2e-3, flat=0.6),
    language_batch=8,
    align=Plan(steps=4000, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.6, floor=0.1),
    tune=Plan(steps=4000, matrix_rate=2e-3, other_rate=1e-3, flat=0.4),
    images=4,
)
"""The recipe of the shipped weights and of the two other seeds."""
