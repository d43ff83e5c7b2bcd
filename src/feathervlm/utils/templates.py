"""The Jinja environment that all generated pages and reports share.

Imports jinja2, so only modules that write pages may import this one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(package: str, template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Return the text of a template.

    Values are escaped in templates whose name ends with `.html.j2` and inserted as they are in all others. A value that
    the template uses and the caller does not pass is an error.

    Args:
        package: Package whose directory `templates` holds the template.
        template: File name of the template.
        filters: Functions that the template may apply to values, by name.
        values: What the template shows, by name.
    """
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)
