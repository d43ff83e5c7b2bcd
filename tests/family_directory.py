"""Model directories of tiny families, whose processors are the real ones without what needs torchvision."""

from families.processors import PROCESSORS
from family_cases import FAMILY_CASES
from feathervlm.inference import loading

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}MARK {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
)
MARKS = {"llava": "<image>", "qwen2_5_vl": "<|image_pad|>", "gemma3": "<boi>"}


def maker(folder, monkeypatch):
    """Return a function that saves the tiny model of a family and returns its directory."""

    def make(name, template=True):
        processor = PROCESSORS[name]()
        processor.chat_template = TEMPLATE.replace("MARK", MARKS[name]) if template else None
        FAMILY_CASES[name].model().save_pretrained(folder / name)
        monkeypatch.setattr(loading, "load_processor", lambda path: processor)
        return str(folder / name)

    return make
