"""The workbench in a browser: Streamlit pages over one worker that owns the model.

main.py        what `streamlit run` starts: the web application, and `python app/main.py --port`
server.py      its life, security headers and the event stream of a job
script/ frame.py the script of every rerun: navigation, prompt, tokens, metric, plan; then the page
page.py desk.py   what a page is, and what it is handed: the investigation, `ask` and `change`
state.py       the investigation: everything on the screen as one value <-> URL <-> JSON
specs.py results.py   what can be asked of the worker and what comes back: plain data, no torch
host.py        the queue in between: one worker thread, merging, caching, cancelling, recovering
jobs/          spec -> library calls; the only place that touches torch and workbench
views/         result -> figures, sentences and checks; pure
components/    the figures on the screen: canvas, tokens, bars, lines, streams
pages/         one file per page, found by its name
tools/         screenshots
"""
