"""Pictures as data: a chart is stated once (`spec`) and drawn twice.

`spec` says what a chart is, `static` draws it with matplotlib (SVG for the page, PNG, PDF),
`interactive` turns it into the JSON that plotly.js draws in the page. `theme` has the colours of
both, `svg` cleans matplotlib's output, `scales` are the colour levels of heat maps.
"""
