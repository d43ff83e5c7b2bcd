"""What a Prismatic run's config.json names, and what of it a stock LLaVA can hold.

Only facts that the weights do not tell: image and patch size, width of a head, activation, prompt. Numbers of layers,
widths and vocabularies are read from the tensors. Facts after the code of TRI-ML/prismatic-vlms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from feathervlm.core.errors import PruningError

Resize = Literal["resize-naive", "resize-crop", "letterbox"]
Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Tower:
    """A vision encoder that is one of transformers' own.

    Args:
        kind: the transformers class: SigLIP or CLIP.
        size: side of the picture that it sees, in pixels.
        width, blocks: of the real model; weights as wide as that must be as deep.
        fetch: repositories on the hub that hold its weights.
    """

    kind: Literal["siglip", "clip"]
    size: int
    width: int
    blocks: int
    fetch: tuple[str, ...]
    patch: int = 14

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return 72 if self.kind == "siglip" else 64

    @property
    def mean(self) -> tuple[float, float, float]:
        """Subtracted from each colour, after scaling to 0..1."""
        return (0.5, 0.5, 0.5) if self.kind == "siglip" else (0.48145466, 0.4578275, 0.40821073)

    @property
    def std(self) -> tuple[float, float, float]:
        """What each colour is divided by."""
        return (0.5, 0.5, 0.5) if self.kind == "siglip" else (0.26862954, 0.26130258, 0.27577711)

    @property
    def patches(self) -> int:
        """Visual tokens of a picture; pixels right and below of the last whole patch are not seen."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class PromptFormat:
    """What stands around a user's message: `first` before the first one, `later` before the others, `after` each."""

    first: str
    later: str
    after: str


@dataclass(frozen=True)
class Llm:
    """A language model.

    Args:
        kind: the transformers class.
        width, layers: of the real model; weights as wide as that must be as deep.
        prompt: what it was trained with.
        fetch: a repository on the hub with its tokenizer.json.
    """

    kind: Literal["llama", "mistral"]
    width: int
    layers: int
    prompt: PromptFormat
    fetch: str
    head: int = 128


@dataclass(frozen=True)
class Recipe:
    """What a run is made of: names as in its config.json, and what they stand for."""

    model: str
    tower_id: str
    tower: Tower
    llm_id: str
    llm: Llm
    resize: Resize
    max_length: int


TIMM_SIGLIP = "timm/ViT-SO400M-14-SigLIP"
TOWERS = {
    "siglip-vit-so400m": Tower("siglip", 224, 1152, 27, (TIMM_SIGLIP, "timm/vit_so400m_patch14_siglip_224.webli")),
    "siglip-vit-so400m-384px": Tower(
        "siglip", 384, 1152, 27, (f"{TIMM_SIGLIP}-384", "google/siglip-so400m-patch14-384")
    ),
    "clip-vit-l": Tower("clip", 224, 1024, 24, ("openai/clip-vit-large-patch14",)),
    "clip-vit-l-336px": Tower("clip", 336, 1024, 24, ("openai/clip-vit-large-patch14-336",)),
}

PURE = PromptFormat("In: ", "In: ", "\nOut: ")
VICUNA = PromptFormat(
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ",
    "USER: ",
    " ASSISTANT: ",
)
LLAMA2_CHAT = PromptFormat(
    # The unbalanced <<SYS> is what these models were trained with.
    "[INST] <<SYS>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n",
    "<s>[INST] ",
    " [/INST] ",
)
INSTRUCT = PromptFormat("[INST] ", "[INST] ", " [/INST] ")

LLAMA2, VICUNA_HUB, MISTRAL = "meta-llama/Llama-2-7b-hf", "llava-hf/llava-1.5-7b-hf", "mistralai/Mistral-7B"
LLMS = {
    "llama2-7b-pure": Llm("llama", 4096, 32, PURE, LLAMA2),
    "llama2-13b-pure": Llm("llama", 5120, 40, PURE, LLAMA2),
    "llama2-7b-chat": Llm("llama", 4096, 32, LLAMA2_CHAT, LLAMA2),
    "llama2-13b-chat": Llm("llama", 5120, 40, LLAMA2_CHAT, LLAMA2),
    "vicuna-v15-7b": Llm("llama", 4096, 32, VICUNA, VICUNA_HUB),
    "vicuna-v15-13b": Llm("llama", 5120, 40, VICUNA, VICUNA_HUB),
    "mistral-v0.1-7b-pure": Llm("mistral", 4096, 32, PURE, f"{MISTRAL}-v0.1"),
    "mistral-v0.1-7b-instruct": Llm("mistral", 4096, 32, INSTRUCT, f"{MISTRAL}-Instruct-v0.1"),
}

RESIZES: tuple[Resize, ...] = ("resize-naive", "resize-crop", "letterbox")

FUSED = "it feeds two vision encoders side by side into one projector, and LLaVA has one encoder"
WHY_NOT = {
    "dinosiglip-vit-so-224px": FUSED,
    "dinosiglip-vit-so-384px": FUSED,
    "dinoclip-vit-l-336px": FUSED,
    "dinov2-vit-l": "its encoder puts a class token and four registers before the patches, and LLaVA drops one token",
    "in1k-vit-l": "LLaVA's processor and feature selection are made for CLIP and SigLIP, not for an ImageNet ViT",
    "fused-gelu-mlp": "its projector has three layers, and LLaVA's has two",
    "linear": "its projector is a single layer, and LLaVA's has two",
    "phi-2-3b": "Phi-2 has other layers than Llama, and its prompt spells the start token out as text",
}


def recipe(config: Mapping[str, Any], name: str) -> Recipe:
    """What the `model` part of a run's config.json stands for.

    Args:
        config: the whole config.json.
        name: of the file, for messages.

    Raises:
        PruningError: if keys are missing, names are unknown, or LLaVA cannot hold the model.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise PruningError(f"{name} has no 'model' part; give the folder of one Prismatic run as it is on the hub.")

    def text(key: str) -> str:
        value = model.get(key)
        if not isinstance(value, str):
            raise PruningError(f"{name} has no text for model.{key}; give a Prismatic run's own config.json.")
        return value

    tower = _known(TOWERS, text("vision_backbone_id"), "vision_backbone_id")
    projector = text("arch_specifier").rsplit("+", 1)[-1]
    _known({"gelu-mlp": None}, projector, "arch_specifier")
    llm = _known(LLMS, text("llm_backbone_id"), "llm_backbone_id")
    resize = _known({value: value for value in RESIZES}, text("image_resize_strategy"), "image_resize_strategy")
    length = model.get("llm_max_length", 2048)
    if not isinstance(length, int) or length < 1:
        raise PruningError(f"{name} has {length!r} for model.llm_max_length; it is a number of tokens.")
    return Recipe(
        text("model_id"), text("vision_backbone_id"), tower, text("llm_backbone_id"), llm, resize, length
    )  # fmt: skip


def _known(facts: Mapping[str, Fact], name: str, key: str) -> Fact:
    if name in facts:
        return facts[name]
    if name in WHY_NOT:
        raise PruningError(f"A model with {key} {name!r} does not map to a stock LLaVA: {WHY_NOT[name]}.")
    raise PruningError(f"{key} {name!r} is unknown; this command converts {', '.join(facts)}.")
