"""Hooks of MkDocs: pages from outside docs/, notebooks as pages, and links that work on GitHub and on the site.

MkDocs accepts links to files in docs/ only. What readers need of the rest of the repository is added to the site here,
and every relative link is resolved from the place of its page in the repository, as GitHub does. A link to a file that
is not on the site stays as it is, so that the strict build refuses it.

Notebooks become Markdown, so that their links are checked and they look like the other pages; mkdocs-jupyter would
bring HTML of its own and the whole of Jupyter.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CITATION.cff": "CITATION.cff",
    "tests/README.md": "tests.md",
    "src/feathervlm/embedded/weights/README.md": "embedded-model.md",
    "src/feathervlm/evaluation/paper.json": "paper.json",
}
"""Files outside docs/ that the site contains: path in the repository -> path on the site."""
LINK = re.compile(r"(\]\()([^()#\s:]+)")
"""The start of an inline link or picture with a relative target: what stands before the target, and the target."""


def site_path(path: str) -> str | None:
    """Return where the site has a file of the repository, or None if the site does not have it."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if not path.startswith("docs/"):
        return None
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def relink(text: str, path: str) -> str:
    """Return the text of a page with its links as they are on the site.

    Args:
        text: Markdown.
        path: Path of the page in the repository.
    """
    folder, here = posixpath.dirname(path), posixpath.dirname(site_path(path) or "") or "."

    def replace(match: re.Match[str]) -> str:
        target = site_path(posixpath.normpath(posixpath.join(folder, match[2])))
        return match[0] if target is None else match[1] + posixpath.relpath(target, here)

    return LINK.sub(replace, text)


def notebook_page(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by file name.

    Args:
        notebook: The notebook as JSON.
        stem: File name of the notebook without its ending.
    """
    parts, pictures = [], dict[str, bytes]()
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/jpeg" in data:
                name = f"{stem}-{len(pictures) + 1}.jpg"
                pictures[name] = base64.b64decode("".join(data["image/jpeg"]))
                parts.append(f"![What the cell above shows]({name})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Any, *, config: Any) -> Any:
    """Add the files from outside docs/, and a page for every notebook."""
    from mkdocs.structure.files import File

    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        place = site_path(f"docs/{notebook.src_uri}")
        page, pictures = notebook_page(json.loads(notebook.content_string), Path(place).stem)
        files.append(File.generated(config, place, content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, posixpath.join(posixpath.dirname(place), name), content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Let the links of a page lead to the places of the site."""
    place = page.file.src_uri
    path = next((path for path, at in OUTSIDE.items() if at == place), f"docs/{place}")
    text = relink(markdown, path)
    notebook = re.sub(r"\.md$", ".ipynb", place)
    if notebook != place and files.get_file_from_path(notebook):
        text += f"\n[Download this notebook]({posixpath.basename(notebook)})\n"
    return text
