"""The processor of a converted model: the tokenizer, the prompt, and how pictures are resized.

The original reads the text by itself and puts the picture's features between the start token and it. So the ids of a
prompt must be [start] + [image] * patches + those of the text alone, whose first word carries the mark of a beginning
word. Llama's own tokenizers drop that mark after a special token; the one written here does not, and `processor`
proves the equality on the tokenizer that it was given.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic.registry import Llm, PromptFormat, Recipe, Tower

UNKNOWN, START, END, PAD, IMAGE = "<unk>", "<s>", "</s>", "<PAD>", "<image>"
MULTIPLE = 64
"""Prismatic adds a padding token and fills the rows of embeddings up to a multiple of this."""

REAL = 32000
COLON = {"llama": 29901, "mistral": 28747}
"""Llama 2 and Mistral 0.1 have this many tokens both; these ids of ":" tell them apart."""

PROBES = ("Where is the dog?", "What colour is it?\nAnswer the question using a single word or phrase.")

TEMPLATE = """\
{%- set first = FIRST -%}
{%- set later = LATER -%}
{%- set after = AFTER -%}
{%- set chat = namespace(text='', begun=false, message='') -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- set chat.message = '' -%}
    {%- if message.content is string -%}
        {%- set chat.message = message.content -%}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}
                {{- '<image>' -}}
            {%- else -%}
                {%- set chat.message = chat.message + part.text -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set chat.message = chat.message.replace('<image>', '').strip() -%}
    {%- if message.role == 'user' -%}
        {%- set chat.text = chat.text + (later if chat.begun else first) + chat.message + after -%}
    {%- elif message.role == 'assistant' -%}
        {%- set chat.text = chat.text + (chat.message or ' ') + eos_token -%}
    {%- else -%}
        {{- raise_exception('Prismatic models know the roles user and assistant only.') -}}
    {%- endif -%}
    {%- set chat.begun = true -%}
{%- endfor -%}
{{- chat.text.rstrip() -}}
"""


def read_tokenizer(directory: Path, llm: Llm) -> Tokenizer:
    """The tokenizer.json of a directory.

    Raises:
        PruningError: if there is none, or its first tokens are not Llama's.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise PruningError(f"--tokenizer {directory} holds no tokenizer.json; fetch the one of {llm.fetch}.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise PruningError(f"{path} cannot be read ({error}); fetch the one of {llm.fetch}.") from error
    if [tokenizer.token_to_id(token) for token in (UNKNOWN, START, END)] != [0, 1, 2]:
        raise PruningError(
            f"{path} does not begin with {UNKNOWN}, {START}, {END} as Llama's does; fetch the one of {llm.fetch}."
        )
    return tokenizer


def size(tokenizer: Tokenizer) -> int:
    """Tokens of the base vocabulary: what somebody added later does not count."""
    return int(tokenizer.get_vocab_size(with_added_tokens=False))


def check_vocabulary(tokenizer: Tokenizer, rows: int, llm: Llm) -> None:
    """Hold a vocabulary against the language model that is to read it.

    Args:
        tokenizer: what was given.
        rows: of the checkpoint's embeddings.
        llm: what the checkpoint says it is.

    Raises:
        PruningError: if Prismatic would make another number of rows of it, or it is another model's of the same size.
    """
    tokens = size(tokenizer)
    if -(-(tokens + 1) // MULTIPLE) * MULTIPLE != rows:
        raise PruningError(
            f"The tokenizer has {tokens} tokens, which with a padding token in multiples of {MULTIPLE} do not make the "
            f"checkpoint's {rows} rows of embeddings; give the tokenizer of {llm.fetch}."
        )
    if tokens + 1 == rows:
        raise PruningError(f"All {rows} rows of embeddings are taken, and none is left for the image placeholder.")
    if tokens == REAL and tokenizer.token_to_id(":") != COLON[llm.kind]:
        raise PruningError(f"The tokenizer has as many tokens as that of {llm.fetch}, but not the same; give that one.")


def processor(recipe: Recipe, source: Tokenizer) -> LlavaProcessor:
    """LLaVA's processor for a converted model.

    Raises:
        PruningError: if prompts would not get the ids that the original gives them.
    """
    clip = recipe.tower.kind == "clip"
    made = LlavaProcessor(
        image_processor(recipe),
        _tokenizer(source, recipe.max_length),
        patch_size=recipe.tower.patch,
        vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=int(clip),
        chat_template=template(recipe.llm.prompt),
    )
    _prove(made, recipe.tower, recipe.llm, source)
    return made


def image_processor(recipe: Recipe) -> LlavaImageProcessorPil:
    """Resizes, crops or pads as the run's `image_resize_strategy` says; bicubic, by Pillow."""
    tower, side = recipe.tower, recipe.tower.size
    naive = recipe.resize == "resize-naive"
    return LlavaImageProcessorPil(
        size={"height": side, "width": side} if naive else {"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_center_crop=not naive,
        do_pad=recipe.resize == "letterbox",
        resample=Image.Resampling.BICUBIC,
        image_mean=list(tower.mean),
        image_std=list(tower.std),
    )


def template(prompt: PromptFormat) -> str:
    """The chat template: start token, placeholders of pictures, then the turns, without white space at the end."""
    told = {"FIRST": prompt.first, "LATER": prompt.later, "AFTER": prompt.after}
    text = TEMPLATE
    for name, value in told.items():
        text = text.replace(name, json.dumps(value), 1)
    return text


def _tokenizer(source: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """The vocabulary of `source`, a padding token and an image placeholder, with every text read as if alone."""
    tokens, document = size(source), json.loads(source.to_str())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    kept = [token for token in document["added_tokens"] if token["id"] < tokens]
    document |= {
        "added_tokens": [
            *kept,
            *({"id": tokens + i, "content": text, **added} for i, text in enumerate((PAD, IMAGE))),
        ],
        "normalizer": None,
        # "always" marks the first word of every text between special tokens; "first", transformers' choice for Llama,
        # that of the whole prompt only.
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": START, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": START, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {START: {"id": START, "ids": [1], "tokens": [START]}},
        },
    }
    # Not LlamaTokenizer, which builds itself anew when it is loaded and then drops the mark.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _prove(made: LlavaProcessor, tower: Tower, llm: Llm, source: Tokenizer) -> None:
    picture = Image.new("RGB", (tower.size, tower.size))
    for probe in PROBES:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": probe}]
        chat: Any = [{"role": "user", "content": content}]
        asked: Any = made.apply_chat_template(chat, tokenize=True, return_dict=True)
        text = (llm.prompt.first + probe + llm.prompt.after).rstrip()
        wanted = [1, *[size(source) + 1] * tower.patches, *source.encode(text, add_special_tokens=False).ids]
        if list(asked["input_ids"][0]) != wanted:
            raise PruningError(
                f"This tokenizer does not mark words as Llama's does: {text!r} would not get the ids that the "
                f"original gives it; give the tokenizer.json of {llm.fetch}."
            )
