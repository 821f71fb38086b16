"""What the build of the site adds to the pages: MathJax, from an installed package."""

from importlib.util import find_spec
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

MATHJAX = "javascripts/tex-svg.js"  # one file with its fonts: formulas are set without a network


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put MathJax into the site."""
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise PluginError('the site needs MathJax: pip install -e ".[docs]"')
    source = Path(package.origin).parent / "static" / "mathjax" / Path(MATHJAX).name
    files.append(File.generated(config, MATHJAX, content=source.read_bytes()))
    return files
