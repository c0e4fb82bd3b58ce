"""The page: one HTML file, no network, readable without scripts, safe by `html.el`.

`document` puts it together from `sections`, `tables` and `keys`; `assets` reads the template, the
style sheet and the script in `static/` and plotly.js from its package.
"""
