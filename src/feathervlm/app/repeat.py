"""The Python lines and the commands that repeat what is on the screen."""

import shlex
from dataclasses import fields

from feathervlm.app.compare import Comparison
from feathervlm.app.picture_store import SCENE
from feathervlm.embedded.assets import SHIPPED
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec


def python_lines(comparison: Comparison, spec: ModelSpec) -> str:
    """Return a program that asks the same question under the same methods.

    Args:
        comparison: A comparison that was run.
        spec: The model of the page.
    """
    settings, scene = comparison.settings, SCENE.fullmatch(comparison.stored.key)
    picture = f"feathervlm.open_picture({comparison.stored.name!r})"
    lines = []
    if comparison.state.model != SHIPPED:
        lines += ["import torch", "from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    lines += ["import feathervlm"]
    if scene:
        lines += ["from feathervlm.embedded.tasks import HELD_OUT, sample"]
        picture = f'sample("{scene[1]}", HELD_OUT, {int(scene[2])})[0].image'
    lines += ["", f"picture = {picture}"]
    if scene:
        lines += [f'picture.save("{comparison.stored.name}")  # for the commands']
    if comparison.state.model == SHIPPED:
        lines += ["model, processor = feathervlm.embedded.load()"]
    else:
        name = repr(comparison.state.model)
        lines += [f"processor = AutoProcessor.from_pretrained({name})"]
        lines += [
            f"model = AutoModelForImageTextToText.from_pretrained({name}, dtype=torch.{settings['dtype']}, "
            f"attn_implementation={spec.attention!r})"
        ]
        lines += [f"model = model.to({settings['device']!r})"]
    question = repr(comparison.question)
    if settings["template"]:
        lines += [
            f'content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": {question}}}]',
            "inputs = processor.apply_chat_template(",
            '    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,',
            '    return_tensors="pt",',
            ").to(model.device, dtype=model.dtype)",
        ]
    else:
        lines += [
            f'inputs = processor(images=[picture], text={question}, return_tensors="pt")',
            "inputs = inputs.to(model.device, dtype=model.dtype)",
        ]
    methods = [column.name for column in comparison.columns if column.pruned and column.method is not None]
    lines += [
        "",
        "",
        "def answer():",
        f"    output = model.generate(**inputs, max_new_tokens={settings['tokens']}, do_sample=False)",
        '    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()',
        "",
        "",
        'print("unpruned:", answer())',
    ]
    if methods:
        listed = ", ".join(map(repr, methods))
        lines += [
            f"for method in [{listed}]:",
            "    with feathervlm.prune(model, method) as pruning:",
            '        print(f"{method}: {answer()}")',
            "    print(pruning.report)",
        ]
    return "\n".join(lines) + "\n"


def commands(comparison: Comparison, spec: ModelSpec) -> str:
    """Return one command for each method; see `python_lines`."""
    default = ModelSpec()
    options = {"model": comparison.state.model, "image": comparison.stored.name, "prompt": comparison.question}
    names = {"device": "device", "dtype": "dtype", "attention": "attn-implementation"}
    changed = {
        names[field.name]: getattr(spec, field.name)
        for field in fields(spec)
        if field.name in names and getattr(spec, field.name) != getattr(default, field.name)
    }
    options |= changed | {"max-new-tokens": str(comparison.settings["tokens"])}
    methods = [column.name for column in comparison.columns if column.pruned and column.method is not None]
    return "".join(
        shlex.join(
            ["feathervlm", "run", *(part for name, value in options.items() for part in (f"--{name}", value)),
             "--method", method]
        ) + "\n"
        for method in methods or [UNPRUNED]
    )  # fmt: skip
