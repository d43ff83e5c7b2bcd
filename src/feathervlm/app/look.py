"""How the page looks: a theme of gradio without fonts from elsewhere, and the scripts that copy texts."""

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).parent / "page.css"
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

HEAD = """
<meta name="color-scheme" content="light dark">
<script>
window.fvCopy = async (text, button) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page that is neither on localhost nor on https has no clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const status = document.getElementById("fv-copied");
  if (status) status.textContent = button + " copied.";
};
</script>
"""
"""What the head of the page contains."""


def theme() -> gr.themes.Base:
    """Return the theme; fonts are those of the system."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
    ).set(
        body_text_color_subdued="*neutral_600",  # the default is too pale to read
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
