"""What a converted model is asked: ids, prompts and pixels, against the original's rules written out here."""

import numpy as np
import pytest
import transformers as tf
from PIL import Image
from synthetic import Run, tokenizer

from feathervlm.integrations.prismatic import Sources, convert

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
CHAT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
ASKED = {
    "llama2-7b-pure": "In: {}\nOut:",
    "mistral-v0.1-7b-pure": "In: {}\nOut:",
    "vicuna-v15-7b": VICUNA + " USER: {} ASSISTANT:",
    "llama2-7b-chat": "[INST] <<SYS>\n" + CHAT + "\n<</SYS>>\n\n{} [/INST]",
    "mistral-v0.1-7b-instruct": "[INST] {} [/INST]",
}
PICTURE = Image.new("RGB", (40, 30), "red")


def processor(folder, **changes):
    run = Run(folder, **changes).write()
    convert(Sources(folder / "run", folder / "llm", folder / "vision.safetensors"), folder / "out")
    return run, tf.AutoProcessor.from_pretrained(folder / "out")


def user(text, *pictures):
    return {
        "role": "user",
        "content": [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}],
    }


def ids(made, chat):
    return made.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"][0]


@pytest.mark.parametrize("llm", ASKED)
def test_ids_are_start_then_patches_then_the_text_alone(tmp_path, llm):
    run, made = processor(tmp_path, llm=llm)
    for question in ("Where is the dog?", "  Is it In or Out?\n", "<image>\nWhat is it? Ans\u00e9 \U0001f600", ""):
        text = ASKED[llm].format(question.replace("<image>", "").strip())
        alone = run.tokenizer.encode(text, add_special_tokens=False)
        assert alone.tokens[0].startswith("\u2581")
        assert ids(made, [user(question, PICTURE)]) == [1, *[run.vocabulary + 1] * 256, *alone.ids]
        assert ids(made, [user(question)]) == [1, *alone.ids]


@pytest.mark.parametrize("source", [tokenizer(prepend=False), tokenizer(extra=["<image>", "<pad>"])])
def test_any_form_of_the_same_tokenizer_will_do(tmp_path, source):
    run, made = processor(tmp_path, tokenizer=source)
    alone = tokenizer().encode("In: Where is the dog?\nOut:", add_special_tokens=False).ids
    assert ids(made, [user("Where is the dog?", PICTURE)]) == [1, *[run.vocabulary + 1] * 256, *alone]
    assert made.tokenizer.pad_token_id == run.vocabulary


def test_plain_text_with_a_placeholder_gets_the_same_ids(tmp_path):
    _, made = processor(tmp_path)
    text = "<image>In: Where is the dog?\nOut:"
    found = made(images=[PICTURE], text=text)["input_ids"][0]
    assert list(found) == ids(made, [user("Where is the dog?", PICTURE)])


def test_ids_come_back_as_text(tmp_path):
    _, made = processor(tmp_path)
    found = ids(made, [user("Where is the dog?", PICTURE)])
    assert made.decode(found, skip_special_tokens=True) == "In: Where is the dog?\nOut:"


def test_turns_follow_one_another(tmp_path):
    run, made = processor(tmp_path)
    chat = [
        user("Where is the dog?", PICTURE),
        {"role": "assistant", "content": [{"type": "text", "text": "Left."}]},
        {"role": "user", "content": "Is it In or Out?"},
    ]
    text = "In: Where is the dog?\nOut: Left.</s>In: Is it In or Out?\nOut:"
    assert made.apply_chat_template(chat) == f"<s><image>{text}"
    assert ids(made, chat)[257:] == run.tokenizer.encode(text, add_special_tokens=False).ids


def test_system_turns_are_refused(tmp_path):
    _, made = processor(tmp_path)
    with pytest.raises(Exception, match="roles user and assistant"):
        made.apply_chat_template([{"role": "system", "content": "Be brief."}])


MEAN = {"siglip": (0.5, 0.5, 0.5), "clip": (0.48145466, 0.4578275, 0.40821073)}
STD = {"siglip": (0.5, 0.5, 0.5), "clip": (0.26862954, 0.26130258, 0.27577711)}


def pixels(picture, resize, kind, side=224):
    """By Pillow alone: (3, side, side)."""
    width, height = picture.size
    if resize == "letterbox":
        longest = max(width, height)
        square = Image.new("RGB", (longest, longest), tuple(int(255 * mean) for mean in MEAN[kind]))
        square.paste(picture, ((longest - width) // 2, (longest - height) // 2))
        picture = square
    elif resize == "resize-crop":
        short = min(width, height)
        picture = picture.resize((side * width // short, side * height // short), Image.Resampling.BICUBIC)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    scaled = (np.asarray(picture, dtype=np.float64) / 255 - MEAN[kind]) / STD[kind]
    return scaled.transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("resize", ["resize-naive", "resize-crop", "letterbox"])
def test_pixels_are_those_of_pillow(tmp_path, kind, resize):
    vision = {"siglip": "siglip-vit-so400m", "clip": "clip-vit-l"}[kind]
    _, made = processor(tmp_path, kind=kind, vision=vision, resize=resize)
    noise = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    for shape in ((300, 420), (300, 200), (60, 60)):
        picture = Image.fromarray(noise[: shape[0], : shape[1]])
        found = made.image_processor(picture, return_tensors="np")["pixel_values"][0]
        assert np.abs(found - pixels(picture, resize, kind)).max() < 1e-5
