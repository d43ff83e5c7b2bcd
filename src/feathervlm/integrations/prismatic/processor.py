"""Builds the processor of a converted model: the tokenizer, the prompt, and how pictures are resized.

The original tokenizes the text alone and inserts the picture's features between the start token and the text. So the
ids of a prompt must be [start] + [image] * patches + those of the text alone, whose first word has the mark of the
beginning of a word. Llama's own tokenizers omit that mark after a special token; the tokenizer written here does not,
and `build_processor` checks the equality on the tokenizer that it is given.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic.registry import LanguageBackbone, PromptFormat, RunFacts, VisionBackbone

UNKNOWN, START, END, PAD, IMAGE = "<unk>", "<s>", "</s>", "<PAD>", "<image>"
MULTIPLE = 64
"""Prismatic adds a padding token and rounds the number of embeddings up to a multiple of this."""

REAL = 32000
COLON = {"llama": 29901, "mistral": 28747}
"""Token ids of ":", which distinguish Llama 2 and Mistral 0.1, since both have `REAL` tokens."""

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
        {{- raise_exception('Prismatic models support the roles user and assistant only.') -}}
    {%- endif -%}
    {%- set chat.begun = true -%}
{%- endfor -%}
{{- chat.text.rstrip() -}}
"""


def read_tokenizer(directory: Path, llm: LanguageBackbone) -> Tokenizer:
    """Read the tokenizer.json of a directory.

    Raises:
        PruningError: If there is no such file, or its first tokens are not Llama's.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise PruningError(f"--tokenizer {directory} has no tokenizer.json; fetch the one of {llm.fetch}.")
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
    """Return the number of tokens of the base vocabulary, without added tokens."""
    return int(tokenizer.get_vocab_size(with_added_tokens=False))


def check_vocabulary(tokenizer: Tokenizer, rows: int, llm: LanguageBackbone) -> None:
    """Check that a vocabulary belongs to a language model.

    Args:
        tokenizer: The tokenizer.
        rows: Number of embeddings in the checkpoint.
        llm: The language model that the run's config.json names.

    Raises:
        PruningError: If Prismatic would add up to another number of embeddings, or the vocabulary is that of another
            model of the same size.
    """
    tokens = size(tokenizer)
    if -(-(tokens + 1) // MULTIPLE) * MULTIPLE != rows:
        raise PruningError(
            f"The tokenizer has {tokens} tokens, which with a padding token and rounded up to a multiple of {MULTIPLE} "
            f"are not the checkpoint's {rows} embeddings; give the tokenizer of {llm.fetch}."
        )
    if tokens + 1 == rows:
        raise PruningError(
            f"All {rows} embeddings are in use, and the image placeholder needs one; choose another checkpoint."
        )
    if tokens == REAL and tokenizer.token_to_id(":") != COLON[llm.kind]:
        raise PruningError(f"The tokenizer has as many tokens as that of {llm.fetch}, but not the same; give that one.")


def build_processor(facts: RunFacts, source: Tokenizer) -> LlavaProcessor:
    """Return LLaVA's processor for a converted model.

    Raises:
        PruningError: If prompts would not get the ids that the original gives them.
    """
    clip = facts.vision.kind == "clip"
    result = LlavaProcessor(
        image_processor(facts),
        _tokenizer(source, facts.max_length),
        patch_size=facts.vision.patch,
        vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=int(clip),
        chat_template=template(facts.llm.prompt),
    )
    _check_ids(result, facts.vision, facts.llm, source)
    return result


def image_processor(facts: RunFacts) -> LlavaImageProcessorPil:
    """Return an image processor that resizes, crops or pads by the run's `image_resize_strategy`."""
    vision, side = facts.vision, facts.vision.size
    naive = facts.resize == "resize-naive"
    return LlavaImageProcessorPil(
        size={"height": side, "width": side} if naive else {"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_center_crop=not naive,
        do_pad=facts.resize == "letterbox",
        resample=Image.Resampling.BICUBIC,
        image_mean=list(vision.mean),
        image_std=list(vision.std),
    )


def template(prompt: PromptFormat) -> str:
    """Return the chat template: start token, placeholders of pictures, then the turns, without trailing white space."""
    parts = {"FIRST": prompt.first, "LATER": prompt.later, "AFTER": prompt.after}
    text = TEMPLATE
    for name, value in parts.items():
        text = text.replace(name, json.dumps(value), 1)
    return text


def _tokenizer(source: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the vocabulary of `source`, a padding token and an image placeholder.

    It tokenizes every text between special tokens as if it stood alone.
    """
    tokens, document = size(source), json.loads(source.to_str())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    kept = [token for token in document["added_tokens"] if token["id"] < tokens]
    document |= {
        "added_tokens": [
            *kept,
            *({"id": tokens + i, "content": text, **added} for i, text in enumerate((PAD, IMAGE))),
        ],
        "normalizer": None,
        # "always" marks the first word of every text between special tokens; "first", which transformers uses for
        # Llama, marks only that of the whole prompt.
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
    # Not a LlamaTokenizer, which is rebuilt when it is loaded and then omits the mark.
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


def _check_ids(result: LlavaProcessor, vision: VisionBackbone, llm: LanguageBackbone, source: Tokenizer) -> None:
    picture = Image.new("RGB", (vision.size, vision.size))
    for probe in PROBES:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": probe}]
        chat: Any = [{"role": "user", "content": content}]
        inputs: Any = result.apply_chat_template(chat, tokenize=True, return_dict=True)
        text = (llm.prompt.first + probe + llm.prompt.after).rstrip()
        expected = [1, *[size(source) + 1] * vision.patches, *source.encode(text, add_special_tokens=False).ids]
        if list(inputs["input_ids"][0]) != expected:
            raise PruningError(
                f"This tokenizer does not mark words as Llama's does: {text!r} would not get the ids that the "
                f"original model gives it; give the tokenizer.json of {llm.fetch}."
            )
