"""What the build adds to the pages: MathJax, from an installed package, and the version."""

import re
from importlib.util import find_spec
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

MATHJAX = "javascripts/tex-svg.js"  # one file with its fonts: formulas are set without a network


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Each page says which version it is about."""
    source = Path(config.config_file_path).parent / "kfac_pinn" / "__init__.py"
    version = re.search(r'^__version__ = "(.*)"', source.read_text(), re.MULTILINE)
    if version is None:
        raise PluginError(f"{source} has no line __version__ = ...")
    config.copyright = f"kfac_pinn {version[1]}"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put MathJax into the site."""
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise PluginError('the site needs MathJax: pip install -e ".[docs]"')
    source = Path(package.origin).parent / "static" / "mathjax" / Path(MATHJAX).name
    files.append(File.generated(config, MATHJAX, content=source.read_bytes()))
    return files
