"""Formulas as MathML, which browsers draw by themselves: no script and no fonts to ship."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def _mathml(node: nodes.Element, display: str) -> str:
    r"""A formula; the converter would show the backslash of `\text{start\_size}`."""
    text = re.sub(r"\\text\{[^}]*\}", lambda m: m[0].replace(r"\_", "_"), node.astext())
    return convert(text, display=display)


def _inline(writer, node: nodes.math) -> None:
    writer.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """How Sphinx takes in an extension."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
