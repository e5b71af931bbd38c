"""Text that may come from anywhere, so written that it cannot command the terminal. Imports nothing heavy."""

from collections.abc import Mapping

_C0 = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_C1 = dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_HARMLESS: Mapping[int, int] = {**_C0, 0x7F: 0x2421, **_C1}
"""Control characters → their pictures, so that no text can move the cursor, rename the window or worse."""


def harmless(text: str) -> str:
    """`text` with every control character but line feed and tab made visible instead of effective."""
    return text.translate(_HARMLESS)
