"""The page's style sheet and its few lines of script, inlined: the report is one file, offline."""

from __future__ import annotations

from moejax.analysis import theme

_LIGHT = (
    "--page:#f6f7f9;--card:#ffffff;--line:#e2e6ea;--soft:#f1f3f6;--link:#0062a3;--good:#00704f;"
    "--warn:#8a5300;--bad:#a8321b;--warnbg:#fff7e8;--warnline:#efd9ae;color-scheme:light;"
)
_DARK = (
    "--page:#0d1013;--card:#14181d;--line:#272e36;--soft:#1b2127;--link:#74bdf5;--good:#3fd0a6;"
    "--warn:#efbe62;--bad:#ff9a80;--warnbg:#211b10;--warnline:#4b3c1c;color-scheme:dark;"
)

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:64px}
body{margin:0;background:var(--page);color:var(--fg);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
a{color:var(--link);text-underline-offset:2px}
:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:4px}
.skip{position:absolute;left:-999px}.skip:focus{left:12px;top:12px;background:var(--card);
 padding:8px;z-index:9}
.top{position:sticky;top:0;z-index:5;background:var(--card);border-bottom:1px solid var(--line)}
.top>div{max-width:1240px;margin:0 auto;padding:0 24px;display:flex;gap:20px;align-items:center;
 height:52px}
.brand{font-weight:700;letter-spacing:-.01em;color:var(--fg);text-decoration:none}
.brand span{color:var(--muted);font-weight:400}
.top nav{flex:1;min-width:0;overflow-x:auto;scrollbar-width:none;white-space:nowrap;
 mask-image:linear-gradient(90deg,#000 calc(100% - 28px),transparent)}
.top nav a{color:var(--muted);text-decoration:none;font-size:14px;margin-right:18px}
.top nav a:last-child{padding-right:24px}
.top nav a:hover{color:var(--fg)}
button{font:inherit;color:inherit;cursor:pointer}
#theme{border:1px solid var(--line);background:var(--soft);border-radius:999px;padding:3px 12px;
 font-size:13px;white-space:nowrap}
main{max-width:1240px;margin:0 auto;padding:36px 24px 48px}
h1{font-size:clamp(26px,3.4vw,38px);line-height:1.15;letter-spacing:-.022em;margin:0 0 10px;
 text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:22px;letter-spacing:-.012em;line-height:1.25;margin:0 0 6px}
h3{font-size:15px;margin:0;font-weight:600}
h2,h3,p,li,dd{overflow-wrap:anywhere}
.lead{color:var(--muted);font-size:18px;margin:0 0 26px;max-width:70ch}
.caption{color:var(--muted);margin:0 0 16px;max-width:88ch;font-size:15px}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:26px;
 margin:0 0 22px;min-width:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(178px,1fr));gap:14px;
 margin:0 0 22px;padding:0}
.tiles>div{background:var(--card);border:1px solid var(--line);border-radius:14px;
 padding:16px 18px;min-width:0}
.tiles dt{color:var(--muted);font-size:13.5px}
.tiles dd{margin:2px 0 0;font-size:26px;font-weight:650;letter-spacing:-.02em;line-height:1.2;
 font-variant-numeric:tabular-nums}
.tiles dd small{display:block;font-size:13.5px;font-weight:400;color:var(--muted);
 letter-spacing:0;margin-top:3px}
.split{display:grid;grid-template-columns:minmax(0,1.7fr) minmax(0,1fr);gap:22px}
.split>.card{margin-bottom:22px;align-self:start}
.findings{margin:10px 0 0;padding:0;list-style:none}
.findings li{padding:10px 0 10px 22px;border-top:1px solid var(--line);position:relative}
.findings li:first-child{border-top:0;font-weight:600}
.findings li::before{content:"";position:absolute;left:2px;top:19px;width:7px;height:7px;
 border-radius:50%;background:var(--s0)}
.care{background:var(--warnbg);border-color:var(--warnline)}
.care ul{margin:10px 0 0;padding-left:18px;font-size:15px}.care li{margin:0 0 8px}
.scroll{overflow:auto;max-height:86vh;max-width:100%;border:1px solid var(--line);
 border-radius:10px;
 background:linear-gradient(90deg,var(--card) 40%,#0000) 0 0/40px 100% no-repeat local,
 linear-gradient(270deg,var(--card) 40%,#0000) 100% 0/40px 100% no-repeat local,
 linear-gradient(270deg,#0002,#0000) 100% 0/14px 100% no-repeat scroll}
table{border-collapse:separate;border-spacing:0;font-size:14px;width:100%}
th,td{padding:9px 14px;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line);
 vertical-align:middle}
tbody tr:last-child>*{border-bottom:0}
thead th{position:sticky;top:0;z-index:1;background:var(--soft);color:var(--muted);
 font-weight:600;font-size:13px;vertical-align:bottom;line-height:1.3}
.runs th,.runs td{padding:9px}.runs thead th{white-space:normal;min-width:50px}
 .runs thead th:first-child{min-width:150px}
thead th button{all:unset;cursor:pointer;font:inherit;color:inherit}
thead th button:focus-visible{outline:2px solid var(--link)}
thead th button{text-decoration:underline dotted;text-underline-offset:3px}
th[aria-sort] button{color:var(--fg);text-decoration:none}
th[aria-sort=ascending] button::after{content:"\\2191"}
th[aria-sort=descending] button::after{content:"\\2193"}
.n{text-align:right;font-variant-numeric:tabular-nums}
.runs tbody th{position:sticky;left:0;background:var(--card);font-weight:600;z-index:1;
 border-right:1px solid var(--line)}
.runs thead th:first-child{position:sticky;left:0;z-index:2;border-right:1px solid var(--line)}
.name{display:inline-flex;gap:9px;align-items:center}
.name small{display:block;color:var(--muted);font-weight:400;font-size:12.5px;line-height:1.3}
td.best{font-weight:700;color:var(--good)}
.wrap td{white-space:normal;min-width:120px;overflow-wrap:anywhere}

.badge{display:inline-flex;gap:5px;align-items:center;font-size:13px;padding:1px 9px;
 border-radius:999px;border:1px solid var(--line);background:var(--soft)}
.badge i{font-style:normal;font-weight:700}
.badge.done{color:var(--good)}.badge.running,.badge.interrupted,.badge.warning{color:var(--warn)}
.badge.failed,.badge.excluded{color:var(--bad)}
.key{width:30px;height:14px;flex:none}.key path{stroke-width:2;fill:none}.key .mark{stroke:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;padding:0;margin:0 0 14px;
 font-size:14px;max-height:132px;overflow-y:auto}
.legend li{display:flex;gap:8px;align-items:center;min-width:0}
.scale{list-style:none;display:flex;flex-wrap:wrap;padding:0;margin:0 0 16px;font-size:12.5px;
 color:var(--muted);gap:6px 3px}
.scale li{text-align:center;min-width:62px}.scale span{display:block;height:14px;
 margin-bottom:3px;border-radius:2px}
.scale li:first-child{margin-right:12px}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));
 gap:22px 30px}
figure{margin:0;min-width:0}figure h3{margin:0 0 4px;overflow-wrap:anywhere}
.plot{display:block;width:100%;height:auto;font-family:inherit;overflow:visible}
.plot *{stroke-linejoin:round}.plot text{fill:var(--fg)}
.tabs{display:inline-flex;gap:3px;background:var(--soft);border:1px solid var(--line);
 border-radius:10px;padding:3px;margin:0 0 16px;max-width:100%;overflow-x:auto}
.tabs button{border:0;background:none;padding:5px 15px;border-radius:7px;font-size:14px;
 color:var(--muted);white-space:nowrap}
.tabs button[aria-selected=true]{background:var(--card);color:var(--fg);font-weight:600;
 box-shadow:0 1px 2px #0003}
.tab>h3{margin:18px 0 8px;color:var(--muted)}.js .tab>h3{display:none}
.more{margin-top:18px;font-size:14px;display:flex;flex-wrap:wrap;gap:8px 18px;
 align-items:baseline}
details{min-width:0}summary{cursor:pointer;color:var(--link);font-size:14px}
.more details[open]{flex-basis:100%}details .scroll{margin-top:10px;max-height:420px;
 overflow:auto}
details .panels{margin-top:16px}
.empty{border:1px dashed var(--line);border-radius:10px;padding:18px;color:var(--muted);margin:0}
dl.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:3px 18px;margin:8px 0 0;
 font-size:14px}
dl.facts dt{color:var(--muted)}dl.facts dd{margin:0}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px;
 overflow-wrap:anywhere}
.more+.origin{margin-top:18px}.origin{border-top:1px solid var(--line);padding:12px 0}
footer{color:var(--muted);font-size:13.5px;max-width:1240px;margin:0 auto;padding:0 24px 48px}
@media(max-width:860px){.split{grid-template-columns:1fr;gap:0}}
@media(max-width:560px){:root{--zoom:1.25}main{padding:22px 10px}.card{padding:18px 13px;
 border-radius:12px}.top>div{padding:0 14px;gap:12px}
 .tiles{grid-template-columns:1fr 1fr;gap:10px}.tiles>div:first-child{grid-column:span 2}
 .tiles>div{padding:13px 14px}.tiles dd{font-size:21px}
 .lead{font-size:16.5px}h2{font-size:20px}dl.facts{grid-template-columns:1fr}
 dl.facts dd{margin-bottom:6px}
 .scale li{min-width:54px}th,td{padding:8px 11px}.brand span{display:none}
 footer{padding:0 14px 36px}
 .runs tbody th,.runs thead th:first-child{max-width:172px}.runs tbody th{white-space:normal;
 overflow-wrap:anywhere}.name>*{min-width:0}.name>.key{min-width:30px}}
@media print{.top,.tabs,.skip{display:none}.tab[hidden]{display:block}.js .tab>h3{display:block}
 .card{break-inside:avoid}body{background:none}}
"""

SCRIPT = """
(function(){
'use strict';
var root=document.documentElement;root.classList.add('js');
var dark=matchMedia('(prefers-color-scheme: dark)');
var toggle=document.getElementById('theme');
function isDark(){return root.dataset.theme?root.dataset.theme==='dark':dark.matches}
function label(){toggle.textContent=isDark()?'Light':'Dark';
 toggle.setAttribute('aria-label','Switch to the '+(isDark()?'light':'dark')+' theme')}
toggle.hidden=false;label();
toggle.addEventListener('click',function(){root.dataset.theme=isDark()?'light':'dark';label()});
dark.addEventListener('change',label);
document.querySelectorAll('[data-tabs]').forEach(function(box){
 var tabs=[].slice.call(box.querySelectorAll(':scope > .tab'));
 var bar=document.createElement('div');bar.className='tabs';bar.setAttribute('role','tablist');
 bar.setAttribute('aria-label',box.dataset.tabs);
 var buttons=tabs.map(function(tab,i){
  var b=document.createElement('button');b.type='button';b.textContent=tab.dataset.label;
  b.id=tab.id+'-button';b.setAttribute('role','tab');b.setAttribute('aria-controls',tab.id);
  tab.setAttribute('role','tabpanel');tab.setAttribute('aria-labelledby',b.id);
  b.addEventListener('click',function(){show(i)});
  b.addEventListener('keydown',function(e){
   var d={ArrowRight:1,ArrowLeft:-1}[e.key];if(!d)return;
   var n=(i+d+tabs.length)%tabs.length;show(n);buttons[n].focus()});
  bar.appendChild(b);return b});
 function show(k){tabs.forEach(function(tab,i){tab.hidden=i!==k;
  buttons[i].setAttribute('aria-selected',String(i===k));buttons[i].tabIndex=i===k?0:-1})}
 box.insertBefore(bar,tabs[0]);show(0)});
document.querySelectorAll('table.runs').forEach(function(table){
 var heads=[].slice.call(table.tHead.rows[0].cells);
 heads.forEach(function(th,column){
  var b=document.createElement('button');b.type='button';b.textContent=th.textContent;
  th.textContent='';th.appendChild(b);
  b.addEventListener('click',function(){
   var up=th.getAttribute('aria-sort')!=='ascending';
   heads.forEach(function(h){h.removeAttribute('aria-sort')});
   th.setAttribute('aria-sort',up?'ascending':'descending');
   var rows=[].slice.call(table.tBodies[0].rows);
   function key(row){return row.cells[column].dataset.v}
   rows.sort(function(a,b){var x=key(a),y=key(b);
    if(x===''||y==='')return (x==='')-(y==='');
    var d=column<2?x.localeCompare(y):x-y;return up?d:-d});
   rows.forEach(function(row){table.tBodies[0].appendChild(row)})})})});
})();
"""


def style_sheet() -> str:
    """All CSS: both themes by preference, overridden by `data-theme` on the root."""
    light = _LIGHT + theme.css_variables(dark=False)
    dark = _DARK + theme.css_variables(dark=True)
    hide_dark, hide_light = (
        ".dark-only{display:none}",
        ".light-only{display:none}.dark-only{display:inline}",
    )
    return "".join(
        [
            f":root{{{light}}}{hide_dark}",
            f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}",
            _under(":root:not([data-theme=light])", hide_light),
            f"}}:root[data-theme=dark]{{{dark}}}",
            _under(":root[data-theme=dark]", hide_light),
            _RULES.strip(),
        ]
    )


def _under(scope: str, rules: str) -> str:
    return "".join(f"{scope} {rule}}}" for rule in rules.split("}") if rule)
