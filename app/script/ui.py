"""The script Streamlit runs on every click.

It lies in a folder of its own: beside a folder called `pages`, Streamlit would take that folder's
files for scripts and answer the first deep link with one of them.
"""

from app.frame import show

show()
