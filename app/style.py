"""The app's style: what Streamlit's theme cannot say. Spacing, one accent, quiet edges."""

from pathlib import Path
from typing import Final

ASSETS: Final = Path(__file__).parent / "assets"
WORDMARK: Final = (ASSETS / "wordmark.svg").read_text(encoding="utf-8")
STYLE: Final = f"<style>{(ASSETS / 'style.css').read_text(encoding='utf-8')}</style>"
