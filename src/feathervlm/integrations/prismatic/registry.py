"""The parts that a Prismatic run's config.json can name, and which of them a stock LLaVA can represent.

It lists only facts that the weights do not show: image and patch size, width of a head, activation, prompt. Numbers of
layers, widths and vocabularies are read from the tensors. The facts are those of the code of TRI-ML/prismatic-vlms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from feathervlm.core.errors import PruningError

Resize = Literal["resize-naive", "resize-crop", "letterbox"]
Fact = TypeVar("Fact")


@dataclass(frozen=True)
class VisionBackbone:
    """A vision encoder that transformers implements.

    Attributes:
        kind: Class in transformers: SigLIP or CLIP.
        size: Side of its picture in pixels.
        width: Width of the published model.
        blocks: Number of blocks of the published model; weights of its width must have that many.
        fetch: Repositories on the hub with its weights.
        patch: Side of a patch in pixels.
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
        """Mean of each colour channel, subtracted from values between 0 and 1."""
        return (0.5, 0.5, 0.5) if self.kind == "siglip" else (0.48145466, 0.4578275, 0.40821073)

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each colour channel."""
        return (0.5, 0.5, 0.5) if self.kind == "siglip" else (0.26862954, 0.26130258, 0.27577711)

    @property
    def patches(self) -> int:
        """Number of visual tokens of a picture; pixels to the right of and below the last whole patch are not used."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class PromptFormat:
    """The text around a user's messages: `first` before the first, `later` before the others, `after` each."""

    first: str
    later: str
    after: str


@dataclass(frozen=True)
class LanguageBackbone:
    """A language model.

    Attributes:
        kind: Class in transformers.
        width: Width of the published model.
        layers: Number of layers of the published model; weights of its width must have that many.
        prompt: Prompt format that it was trained with.
        fetch: Repository on the hub with its tokenizer.json.
        head: Width of an attention head.
    """

    kind: Literal["llama", "mistral"]
    width: int
    layers: int
    prompt: PromptFormat
    fetch: str
    head: int = 128


@dataclass(frozen=True)
class RunFacts:
    """The model that a run's config.json describes.

    Attributes:
        model: Name of the model.
        vision_id: Name of the vision encoder.
        vision: The vision encoder.
        llm_id: Name of the language model.
        llm: The language model.
        resize: Name of the strategy that resizes pictures.
        max_length: Largest number of tokens of a prompt.
    """

    model: str
    vision_id: str
    vision: VisionBackbone
    llm_id: str
    llm: LanguageBackbone
    resize: Resize
    max_length: int


TIMM_SIGLIP = "timm/ViT-SO400M-14-SigLIP"
VISION_BACKBONES = {
    "siglip-vit-so400m": VisionBackbone(
        "siglip", 224, 1152, 27, (TIMM_SIGLIP, "timm/vit_so400m_patch14_siglip_224.webli")
    ),
    "siglip-vit-so400m-384px": VisionBackbone(
        "siglip", 384, 1152, 27, (f"{TIMM_SIGLIP}-384", "google/siglip-so400m-patch14-384")
    ),
    "clip-vit-l": VisionBackbone("clip", 224, 1024, 24, ("openai/clip-vit-large-patch14",)),
    "clip-vit-l-336px": VisionBackbone("clip", 336, 1024, 24, ("openai/clip-vit-large-patch14-336",)),
}

PURE = PromptFormat("In: ", "In: ", "\nOut: ")
VICUNA = PromptFormat(
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ",
    "USER: ",
    " ASSISTANT: ",
)
LLAMA2_CHAT = PromptFormat(
    # These models were trained with the unbalanced <<SYS>.
    "[INST] <<SYS>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n",
    "<s>[INST] ",
    " [/INST] ",
)
INSTRUCT = PromptFormat("[INST] ", "[INST] ", " [/INST] ")

LLAMA2, VICUNA_HUB, MISTRAL = "meta-llama/Llama-2-7b-hf", "llava-hf/llava-1.5-7b-hf", "mistralai/Mistral-7B"
LANGUAGE_BACKBONES = {
    "llama2-7b-pure": LanguageBackbone("llama", 4096, 32, PURE, LLAMA2),
    "llama2-13b-pure": LanguageBackbone("llama", 5120, 40, PURE, LLAMA2),
    "llama2-7b-chat": LanguageBackbone("llama", 4096, 32, LLAMA2_CHAT, LLAMA2),
    "llama2-13b-chat": LanguageBackbone("llama", 5120, 40, LLAMA2_CHAT, LLAMA2),
    "vicuna-v15-7b": LanguageBackbone("llama", 4096, 32, VICUNA, VICUNA_HUB),
    "vicuna-v15-13b": LanguageBackbone("llama", 5120, 40, VICUNA, VICUNA_HUB),
    "mistral-v0.1-7b-pure": LanguageBackbone("mistral", 4096, 32, PURE, f"{MISTRAL}-v0.1"),
    "mistral-v0.1-7b-instruct": LanguageBackbone("mistral", 4096, 32, INSTRUCT, f"{MISTRAL}-Instruct-v0.1"),
}

RESIZES: tuple[Resize, ...] = ("resize-naive", "resize-crop", "letterbox")

FUSED = "it feeds two vision encoders side by side into one projector, and LLaVA has one encoder"
WHY_NOT = {
    "dinosiglip-vit-so-224px": FUSED,
    "dinosiglip-vit-so-384px": FUSED,
    "dinoclip-vit-l-336px": FUSED,
    "dinov2-vit-l": "its encoder has a class token and four registers before the patches, and LLaVA removes one token",
    "in1k-vit-l": "LLaVA's processor and feature selection support CLIP and SigLIP, not an ImageNet ViT",
    "fused-gelu-mlp": "its projector has three layers, and LLaVA's has two",
    "linear": "its projector is a single layer, and LLaVA's has two",
    "phi-2-3b": "Phi-2 has other layers than Llama, and its prompt contains the start token as text",
}


def parse_config(config: Mapping[str, Any], name: str) -> RunFacts:
    """Return the model that a run's config.json describes.

    Args:
        config: The whole config.json.
        name: Name of the file, for messages.

    Raises:
        PruningError: If keys are missing, names are unknown, or LLaVA cannot represent the model.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise PruningError(f"{name} has no 'model' part; give the directory of one Prismatic run as it is on the hub.")

    def text(key: str) -> str:
        value = model.get(key)
        if not isinstance(value, str):
            raise PruningError(f"{name} has no string for model.{key}; give a Prismatic run's own config.json.")
        return value

    vision = _known(VISION_BACKBONES, text("vision_backbone_id"), "vision_backbone_id")
    projector = text("arch_specifier").rsplit("+", 1)[-1]
    _known({"gelu-mlp": None}, projector, "arch_specifier")
    llm = _known(LANGUAGE_BACKBONES, text("llm_backbone_id"), "llm_backbone_id")
    resize = _known({value: value for value in RESIZES}, text("image_resize_strategy"), "image_resize_strategy")
    length = model.get("llm_max_length", 2048)
    if not isinstance(length, int) or length < 1:
        raise PruningError(
            f"{name} has {length!r} for model.llm_max_length; give a config.json with a positive integer."
        )
    return RunFacts(
        text("model_id"), text("vision_backbone_id"), vision, text("llm_backbone_id"), llm, resize, length
    )  # fmt: skip


def _known(facts: Mapping[str, Fact], name: str, key: str) -> Fact:
    if name in facts:
        return facts[name]
    if name in WHY_NOT:
        raise PruningError(f"A model with {key} {name!r} does not map to a stock LLaVA: {WHY_NOT[name]}.")
    raise PruningError(f"{key} {name!r} is unknown; choose a model with one of {', '.join(facts)}.")
