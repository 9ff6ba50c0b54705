"""The app's style: what Streamlit's theme cannot say. Spacing, one accent, quiet edges."""

from typing import Final

WORDMARK: Final = """<svg xmlns="http://www.w3.org/2000/svg" width="128" height="24" viewBox="0 0 128 24">
<g fill="none" stroke="#8257e0" stroke-width="2" stroke-linecap="round">
<path d="M3 19h18M6 14.5h12M9 10h6"/><path d="M12 6V3"/></g>
<text x="30" y="17.5" font-family="system-ui, sans-serif" font-size="15.5" font-weight="640"
 letter-spacing="-.2" fill="#8257e0">workbench</text></svg>"""

STYLE: Final = """<style>
.stMainBlockContainer { max-width: 84rem; padding: 4.1rem 2rem 4rem; }
.stMain .stVerticalBlock { gap: 0.75rem; }
.stAppHeader { border-bottom: 1px solid color-mix(in srgb, currentColor 10%, transparent); }
.st-key-frame, .st-key-frame .stVerticalBlock { gap: 0.5rem; }
.st-key-prompt-row { flex-wrap: wrap; gap: 0.6rem; }
.st-key-prompt-row > div:nth-child(1) { flex: 1 1 22rem; min-width: 14rem; }
.st-key-prompt-row > div:nth-child(2), .st-key-prompt-row > div:nth-child(3) { flex: 0 1 8.5rem; min-width: 6.5rem; }
.st-key-prompt-row label { min-height: 0; }
.st-key-prompt-row input { font-family: "Source Code Pro", ui-monospace, monospace; font-size: 0.9rem; }
[class*="st-key-page-"] { margin-top: 0.6rem; }
@media (max-width: 640px) {
  .stMainBlockContainer { padding: 4rem 0.9rem 3rem; }
  .st-key-prompt-row > div:nth-child(1) { flex-basis: 100%; }
}
</style>"""
