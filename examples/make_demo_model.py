"""Write a small LLaVA model directory and a picture to try `feathervlm run` on, without a download.

The weights are RANDOM: answers are noise, and which tokens are kept has no meaning. Shapes, code paths and the command
line are real: 24 x 24 = 576 visual tokens, a chat template, a stock LlavaForConditionalGeneration.

    python examples/make_demo_model.py /tmp/demo
    feathervlm run --model /tmp/demo --image /tmp/demo/scene.png --prompt "Where is the house?" --method feather
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

PATCH = 14
SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
SENTENCES = [
    "Where is the house? The house is on the left, below the sun.",
    "What is beside the red door? A small tree and a red circle.",
    "How many clouds are in the sky? There are three white clouds.",
    "Describe the picture. What colour is the car on the road?",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make(directory: Path, *, tiny: bool = False) -> None:
    """Write model, processor and scene.png to `directory`.

    Args:
        directory: Directory to write; created if it does not exist.
        tiny: Whether to use 64 visual tokens and 4 layers, for tests.
    """
    directory.mkdir(parents=True, exist_ok=True)
    side = PATCH * (8 if tiny else 24)
    processor = make_processor(side)
    processor.save_pretrained(directory)
    make_model(side, len(processor.tokenizer), tiny).save_pretrained(directory)
    draw_scene().save(directory / "scene.png")


def make_processor(side: int) -> LlavaProcessor:
    """Return a processor with a byte-level tokenizer, which accepts any prompt, and CLIP's image processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    pad, start, end, image = SPECIAL
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        extra_special_tokens={"image_token": image},
    )
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        wrapped,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(side: int, vocabulary: int, tiny: bool) -> LlavaForConditionalGeneration:
    """Return a small LLaVA 1.5 with random weights."""
    width = 64 if tiny else 256
    pad, start, end, image = range(len(SPECIAL))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=side,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=4 if tiny else 12,
            num_attention_heads=4,
            max_position_embeddings=4096,
            pad_token_id=pad,
            bos_token_id=start,
            eos_token_id=end,
        ),
        image_token_index=image,
        image_seq_length=(side // PATCH) ** 2,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        # Large weights, so that attention is far from uniform and methods differ.
        for name, weight in model.get_decoder().named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.0 if "embed" in name else 0.15)
    # Random answers must not end early, since times would not be comparable, and must not contain placeholders.
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [pad, start, end, image]
    return model


def draw_scene() -> Image.Image:
    """Draw a house, a tree, a car, a red ball, sun and clouds, wider than high, so that the processor has to crop."""
    scene = Image.new("RGB", (480, 360), "#8ecae6")
    draw = ImageDraw.Draw(scene)
    draw.rectangle((0, 240, 480, 360), fill="#6a994e")
    draw.rectangle((0, 300, 480, 340), fill="#495057")
    draw.ellipse((380, 20, 440, 80), fill="#ffd60a")
    for x, y in ((60, 40), (190, 25), (300, 70)):
        draw.ellipse((x, y, x + 60, y + 24), fill="white")
        draw.ellipse((x + 20, y - 12, x + 55, y + 18), fill="white")
    draw.rectangle((90, 160, 210, 260), fill="#e9c46a")
    draw.polygon(((80, 160), (150, 100), (220, 160)), fill="#9b2226")
    draw.rectangle((135, 205, 165, 260), fill="#d00000")
    draw.rectangle((290, 190, 304, 260), fill="#7f5539")
    draw.ellipse((260, 120, 334, 205), fill="#2d6a4f")
    draw.rectangle((340, 285, 430, 312), fill="#023e8a")
    draw.rectangle((360, 268, 410, 288), fill="#90e0ef")
    for x in (350, 400):
        draw.ellipse((x, 303, x + 22, 325), fill="black")
    draw.ellipse((225, 250, 265, 290), fill="#ef233c")
    return scene


def main() -> None:
    """Read the command line and write the directory."""
    parser = argparse.ArgumentParser(description="Write a small random LLaVA model and a scene to try feathervlm on.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tiny", action="store_true", help="64 visual tokens and 4 layers, for tests")
    arguments = parser.parse_args()
    disable_progress_bar()
    make(arguments.directory, tiny=arguments.tiny)
    print(f"Wrote {arguments.directory}.\nITS WEIGHTS ARE RANDOM: answers and kept tokens mean nothing.")


if __name__ == "__main__":
    main()
