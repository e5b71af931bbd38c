"""Commands that need more than the core installation say so before they begin."""

from importlib.util import find_spec

from ossia.errors import OssiaError


def need(extra: str, *modules: str) -> None:
    """Raises OssiaError, naming the extra to install, where one of its modules is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise OssiaError(f"this needs {' and '.join(missing)}: install the extra with pip install 'ossia[{extra}]'")
