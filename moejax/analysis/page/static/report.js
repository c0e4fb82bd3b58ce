// The page's script. Without it the page is whole: pictures, tables, everything unfolded.
// Strings of the data reach the page as text nodes and attributes, or escaped by charts/interactive.
(function () {
'use strict';
var root = document.documentElement;
root.classList.add('js');

function all(selector, inside) { return [].slice.call((inside || document).querySelectorAll(selector)); }
function make(name, cls, words) {
  var node = document.createElement(name);
  if (cls) node.className = cls;
  if (words !== undefined) node.textContent = words;
  return node;
}

// ---- theme ----

var prefersDark = matchMedia('(prefers-color-scheme: dark)');
var toggle = document.getElementById('theme');
function isDark() { return root.dataset.theme ? root.dataset.theme === 'dark' : prefersDark.matches; }
function themed() {
  toggle.textContent = isDark() ? 'Light' : 'Dark';
  toggle.setAttribute('aria-label', 'Switch to the ' + (isDark() ? 'light' : 'dark') + ' theme');
  drawn.forEach(function (paint) { paint(); });
}

// "var(--s0)" and "var(--s0,.2)" anywhere in a specification become colours of the theme.
function coloured(value, style) {
  if (typeof value === 'string') {
    var found = /^var\((--\w+)(?:,([\d.]+))?\)$/.exec(value);
    if (!found) return value;
    var colour = style.getPropertyValue(found[1]).trim();
    if (!found[2]) return colour;
    var n = parseInt(colour.slice(1), 16);
    return 'rgba(' + [n >> 16, (n >> 8) & 255, n & 255, found[2]].join(',') + ')';
  }
  if (Array.isArray(value)) {
    // Numbers and matrices of numbers stay as they are; a colour scale is pairs of number and colour.
    var first = Array.isArray(value[0]) ? value[0][1] : value[1] === undefined ? value[0] : value[1];
    if (typeof first === 'number' || first === null) return value;
    return value.map(function (v) { return coloured(v, style); });
  }
  if (value && typeof value === 'object' && !ArrayBuffer.isView(value)) {
    var made = {};
    Object.keys(value).forEach(function (key) { made[key] = coloured(value[key], style); });
    return made;
  }
  return value;
}

// ---- drawing ----

var drawn = []; // one function per live picture, that paints it in the theme of the moment
var parsed = {};
var coarse = matchMedia('(pointer: coarse)').matches;
var live = document.getElementById('live');
var CONFIG = {
  responsive: true, displaylogo: false, showTips: false,
  modeBarButtons: [['zoom2d', 'pan2d', 'resetScale2d']], displayModeBar: coarse ? false : 'hover'
};

function specification(figure, chart) {
  if (!parsed[figure]) parsed[figure] = JSON.parse(document.getElementById('data-' + figure).textContent);
  return parsed[figure][chart];
}

// Names written into texts that plotly.js draws: it reads some HTML there.
function inert(words) {
  return words.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

// A title that is longer than a narrow chart is wide, on two lines.
function broken(words, width) {
  if (words.length * 6.6 < width - 50) return words;
  var middle = words.length / 2, best = -1;
  for (var at = words.indexOf(' '); at >= 0; at = words.indexOf(' ', at + 1)) {
    if (best < 0 || Math.abs(at - middle) < Math.abs(best - middle)) best = at;
  }
  return best < 0 ? words : words.slice(0, best) + '<br>' + words.slice(best + 1);
}

function layoutOf(own, height, width) {
  var axis = {
    automargin: true, gridcolor: 'var(--grid)', linecolor: 'var(--grid)', zeroline: false,
    exponentformat: 'SI', minexponent: 4, tickfont: {color: 'var(--muted)'},
    fixedrange: coarse
  };
  function titled(title) {
    return Object.assign({}, title, {text: broken(title.text, width), font: {size: 12.5, color: 'var(--muted)'}});
  }
  var layout = Object.assign({
    font: {family: 'system-ui, sans-serif', size: 12, color: 'var(--fg)'},
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', showlegend: false,
    margin: {l: 12, r: 16, t: own.title && broken(own.title.text, width) !== own.title.text ? 48 : 34, b: 12}, hovermode: 'closest',
    dragmode: coarse ? false : 'zoom', height: height,
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: 'var(--muted)', activecolor: 'var(--fg)'},
    hoverlabel: {bgcolor: 'var(--card)', bordercolor: 'var(--line)', font: {color: 'var(--fg)'}, align: 'left'}
  }, own);
  if (own.title) {
    layout.title = Object.assign({y: 1, yref: 'container', yanchor: 'top', pad: {t: 8}}, titled(own.title));
  }
  ['xaxis', 'yaxis'].forEach(function (name) {
    if (!own[name]) return;
    layout[name] = Object.assign({}, axis, own[name]);
    if (own[name].title) layout[name].title = titled(own[name].title);
  });
  return layout;
}

// Draws into `host`, again on every change of the theme; returns the painting function.
function plot(host, data, layout, height) {
  function paint() {
    var style = getComputedStyle(root);
    var section = host.closest('section');
    var hidden = (section && section.hiddenNames) || {};
    var traces = coloured(data, style).map(function (trace) {
      return hidden[trace.legendgroup] ? Object.assign({}, trace, {visible: false}) : trace;
    });
    return Plotly.react(host, traces, coloured(layoutOf(layout, height, host.clientWidth), style), CONFIG);
  }
  drawn.push(paint);
  return paint();
}

function drawChart(box, spec) {
  var host = make('div', 'live');
  box.appendChild(host);
  plot(host, spec.data, spec.layout, spec.height).then(function () {
    all('svg.plot', box).forEach(function (svg) { if (!host.contains(svg)) svg.remove(); });
  });
  stepped(box, host, spec);
}

// Arrow keys go from point to point and from series to series; what is there is said aloud.
function stepped(box, host, spec) {
  var lines = spec.data.map(function (t, i) { return i; }).filter(function (i) {
    var t = spec.data[i];
    return t.hoverinfo !== 'skip' && t.x && t.x.length;
  });
  if (!lines.length) return;
  var at = 0, point = -1;
  box.addEventListener('keydown', function (event) {
    var along = {ArrowRight: 1, ArrowLeft: -1}[event.key], across = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (event.key === 'Escape') { Plotly.Fx.unhover(host); return; }
    if (!along && !across) return;
    event.preventDefault();
    if (across) at = (at + across + lines.length) % lines.length;
    var trace = spec.data[lines[at]], last = trace.x.length - 1;
    point = Math.max(0, Math.min(last, point + (along || 0)));
    Plotly.Fx.hover(host, [{curveNumber: lines[at], pointNumber: point}]);
    var told = trace.customdata ? trace.customdata[point] : trace.x[point] + ', ' + trace.y[point];
    live.textContent = trace.legendgroup + ': ' + told + ' (' + (point + 1) + ' of ' + (last + 1) + ')';
  });
}

// ---- heat maps: two picked, and their difference ----

function unpacked(grid) {
  if (grid.matrix) return grid.matrix;
  var text = atob(grid.values), rows = grid.shape[0], columns = grid.shape[1], at = 0;
  grid.matrix = [];
  for (var r = 0; r < rows; r++) {
    var row = new Array(columns);
    for (var c = 0; c < columns; c++, at += 2) {
      var code = text.charCodeAt(at) | (text.charCodeAt(at + 1) << 8);
      row[c] = code === 65535 ? null : grid.low + code * grid.step;
    }
    grid.matrix.push(row);
  }
  return grid.matrix;
}

function levelOf(scale, value) {
  if (value === null) return null;
  if (scale.zero && value === 0) return scale.colors.length - 1;
  var level = 0;
  while (level < scale.edges.length && value >= scale.edges[level]) level++;
  return level;
}

function heat(spec, grid, matrix, scale) {
  var n = scale.colors.length, steps = [];
  scale.colors.forEach(function (colour, i) { steps.push([i / n, colour], [(i + 1) / n, colour]); });
  function ticks(labels, most) {
    var step = Math.ceil(labels.length / most), vals = [], words = [];
    for (var i = 0; i < labels.length; i += step) { vals.push(i); words.push(labels[i]); }
    return {tickmode: 'array', tickvals: vals, ticktext: words, showgrid: false};
  }
  var rows = spec.labels[grid.rows], columns = spec.labels[grid.columns];
  return {
    data: [{
      type: 'heatmap', zmin: 0, zmax: n, zsmooth: false, showscale: false, colorscale: steps,
      z: matrix.map(function (row) { return row.map(function (v) { v = levelOf(scale, v); return v === null ? null : v + 0.5; }); }),
      customdata: matrix, text: matrix.map(function (row, r) { return row.map(function (v, c) { return rows[r] + '<br>' + spec.x + ' ' + columns[c]; }); }),
      hoverongaps: false, xgap: columns.length > 40 ? 0 : 1, ygap: rows.length > 40 ? 0 : 1,
      hovertemplate: spec.y + ' %{text}<br>' + spec.quantity + ' = %{customdata:.3~f}<extra></extra>'
    }],
    layout: {
      xaxis: Object.assign({title: {text: spec.x}}, ticks(columns, 14)),
      yaxis: Object.assign({title: {text: spec.y}, autorange: 'reversed'}, ticks(rows, 14))
    },
    height: Math.max(190, Math.min(480, 120 + 24 * rows.length))
  };
}

function scaleKey(scale) {
  var list = make('ol', 'scale');
  scale.labels.forEach(function (label, i) {
    var item = make('li', '', label), swatch = make('span');
    swatch.style.background = scale.colors[i];
    item.insertBefore(swatch, item.firstChild);
    list.appendChild(item);
  });
  return list;
}

function drawMaps(box, spec) {
  var bar = make('div', 'pick'), panels = make('div', 'panels'), picks = [];
  function picker(words, chosen) {
    var label = make('label', '', words + ' '), select = make('select');
    spec.grids.forEach(function (grid, i) {
      var option = make('option', '', grid.name);
      option.value = i;
      select.appendChild(option);
    });
    select.value = chosen;
    select.addEventListener('change', show);
    label.appendChild(select);
    bar.appendChild(label);
    picks.push(select);
  }
  picker(spec.grids.length > 1 ? 'First' : 'Shown', 0);
  if (spec.grids.length > 1) picker('Second', spec.grids.length - 1);
  box.insertBefore(panels, box.firstChild);
  if (spec.grids.length > 1) box.insertBefore(bar, panels);
  var paints = [];
  function panel(title, alt, picture, scale) {
    var figure = make('figure'), host = make('div', 'live');
    figure.appendChild(make('h3', '', title));
    host.setAttribute('role', 'img');
    host.setAttribute('aria-label', alt);
    figure.appendChild(host);
    if (scale) figure.appendChild(scaleKey(scale));
    panels.appendChild(figure);
    plot(host, picture.data, picture.layout, picture.height);
    paints.push(drawn[drawn.length - 1]);
  }
  function show() {
    drawn = drawn.filter(function (paint) { return paints.indexOf(paint) < 0; });
    paints = [];
    all('.live', panels).forEach(function (host) { Plotly.purge(host); });
    panels.textContent = '';
    var grids = picks.map(function (select) { return spec.grids[+select.value]; });
    grids.forEach(function (grid) {
      panel(grid.name + (grid.note ? ' (' + grid.note + ')' : ''), grid.alt, heat(spec, grid, unpacked(grid), spec.scale));
    });
    if (grids.length < 2 || !spec.difference || grids[0] === grids[1]) return;
    var a = unpacked(grids[0]), b = unpacked(grids[1]), title = grids[0].name + ' − ' + grids[1].name;
    if (a.length !== b.length || a[0].length !== b[0].length) {
      var none = make('figure');
      none.appendChild(make('p', 'empty', 'No difference: the two have different shapes.'));
      panels.appendChild(none);
      return;
    }
    var gap = a.map(function (row, r) {
      return row.map(function (v, c) { return v === null || b[r][c] === null ? null : v - b[r][c]; });
    });
    panel(title, 'Heat map of the difference of the two.', heat(spec, grids[0], gap, spec.difference), spec.difference);
  }
  show();
  all(':scope > details', box).forEach(function (fold) { fold.open = false; });
}

// ---- coloured tokens ----

function drawWords(box, spec) {
  var tokens = all('.words span', box), bar = make('div', 'pick'), label = make('label', '', 'Coloured by ');
  var select = make('select'), told = make('p', 'told', 'Point at a token, or focus the text and use the arrow keys.');
  var key = box.querySelector('.scale'), text = box.querySelector('.words'), at = -1, shade;
  spec.shades.forEach(function (one, i) {
    var option = make('option', '', one.name);
    option.value = i;
    select.appendChild(option);
  });
  label.appendChild(select);
  bar.appendChild(label);
  box.insertBefore(bar, box.firstChild);
  box.appendChild(told);
  function tell(i) {
    if (at >= 0) tokens[at].classList.remove('at');
    at = i;
    tokens[i].classList.add('at');
    told.textContent = '“' + tokens[i].textContent + '” ' + (shade.notes[i] || '');
  }
  function show() {
    shade = spec.shades[+select.value];
    tokens.forEach(function (token, i) {
      var level = shade.levels[i];
      token.style.background = level < 0 ? 'none' : shade.scale.colors[level];
      token.classList.toggle('strong', level > 5);
      token.title = shade.notes[i] || '';
    });
    var fresh = scaleKey(shade.scale);
    key.replaceWith(fresh);
    key = fresh;
  }
  tokens.forEach(function (token, i) {
    token.addEventListener('pointerenter', function () { tell(i); });
  });
  text.tabIndex = 0;
  text.addEventListener('keydown', function (event) {
    var step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10}[event.key];
    if (!step) return;
    event.preventDefault();
    tell(Math.max(0, Math.min(tokens.length - 1, at + step)));
    live.textContent = told.textContent;
  });
  select.addEventListener('change', show);
  show();
}

var MAKERS = {chart: drawChart, maps: drawMaps, words: drawWords};
function start(box) {
  var spec = specification(box.dataset.figure, box.dataset.chart);
  if (spec) MAKERS[spec.type](box, spec);
}
var boxes = all('.chart');
if (window.IntersectionObserver) {
  var watcher = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (!entry.isIntersecting) return;
      watcher.unobserve(entry.target);
      start(entry.target);
    });
  }, {rootMargin: '500px'});
  boxes.forEach(function (box) { watcher.observe(box); });
} else {
  boxes.forEach(start);
}

// ---- legends that show and hide ----

all('ul.legend').forEach(function (list) {
  var section = list.closest('section');
  section.hiddenNames = {};
  all('li', list).forEach(function (item) {
    var button = make('button');
    button.type = 'button';
    button.setAttribute('aria-pressed', 'true');
    while (item.firstChild) button.appendChild(item.firstChild);
    item.appendChild(button);
    button.addEventListener('click', function () {
      var name = item.dataset.name, hide = !section.hiddenNames[name];
      section.hiddenNames[name] = hide;
      button.setAttribute('aria-pressed', String(!hide));
      all('.live', section).forEach(function (host) {
        var which = [];
        (host.data || []).forEach(function (trace, i) { if (trace.legendgroup === name) which.push(i); });
        if (which.length) Plotly.restyle(host, {visible: !hide}, which);
      });
    });
  });
});

// ---- tabs ----

all('[data-tabs]').forEach(function (box) {
  var tabs = all(':scope > .tab', box), bar = make('div', 'tabs');
  bar.setAttribute('role', 'tablist');
  bar.setAttribute('aria-label', box.dataset.tabs);
  var buttons = tabs.map(function (tab, i) {
    var button = make('button', '', tab.dataset.label);
    button.type = 'button';
    button.id = tab.id + '-button';
    button.setAttribute('role', 'tab');
    button.setAttribute('aria-controls', tab.id);
    tab.setAttribute('role', 'tabpanel');
    tab.setAttribute('aria-labelledby', button.id);
    button.addEventListener('click', function () { show(i); });
    button.addEventListener('keydown', function (event) {
      var step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      var next = (i + step + tabs.length) % tabs.length;
      show(next);
      buttons[next].focus();
    });
    bar.appendChild(button);
    return button;
  });
  function show(chosen) {
    tabs.forEach(function (tab, i) {
      tab.hidden = i !== chosen;
      buttons[i].setAttribute('aria-selected', String(i === chosen));
      buttons[i].tabIndex = i === chosen ? 0 : -1;
    });
  }
  box.insertBefore(bar, tabs[0]);
  show(0);
});

// ---- sortable table of runs ----

all('table.runs').forEach(function (table) {
  var heads = [].slice.call(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    var button = make('button', '', head.textContent);
    button.type = 'button';
    head.textContent = '';
    head.appendChild(button);
    button.addEventListener('click', function () {
      var up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      var rows = [].slice.call(table.tBodies[0].rows);
      function key(row) { return row.cells[column].dataset.v; }
      rows.sort(function (a, b) {
        var x = key(a), y = key(b);
        if (x === '' || y === '') return (x === '') - (y === '');
        var d = column < 2 ? x.localeCompare(y) : x - y;
        return up ? d : -d;
      });
      rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
    });
  });
});

toggle.hidden = false;
toggle.addEventListener('click', function () { root.dataset.theme = isDark() ? 'light' : 'dark'; themed(); });
prefersDark.addEventListener('change', themed);
themed();
}());
