"""How a report looks: the style sheet, and the few lines that let the plots follow dark mode and width."""

STYLE = """
:root { --ground: #f7f7f5; --card: #ffffff; --ink: #1d2530; --soft: #5d6875; --line: #e3e5e8;
  --good: #14784f; --bad: #b3261e; --accent: #2a78d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151a; --card: #1a1f26; --ink: #e7eaee;
  --soft: #9aa5b1; --line: #2c333d; --good: #5fd39f; --bad: #ff8a80; --accent: #6aa9f4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 8px 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.12rem; margin: 0 0 10px; }
h3 { font-size: 0.9rem; font-weight: 600; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 0 0 10px; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 16px; }
.note, .lead { color: var(--soft); }
.note { font-size: 0.9rem; }
.banner { border-left: 5px solid var(--soft); background: var(--card); border-radius: 8px;
  padding: 14px 18px; margin-top: 14px; }
.banner strong { font-size: 1.2rem; display: block; }
.banner p { margin: 2px 0 0; }
.banner.good { border-color: var(--good); }
.banner.good strong, td.good { color: var(--good); }
td.bad { color: var(--bad); }
td.here { font-weight: 600; }
td.arm { white-space: nowrap; }
details { margin: 8px 0 12px; }
summary { cursor: pointer; color: var(--accent); font-size: 0.92rem; padding: 4px 0; }
.scroll { overflow-x: auto; max-height: 640px; overflow-y: auto; }
section .scroll + p { margin-top: 10px; }
section > :last-child { margin-bottom: 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; position: sticky; top: 0;
  background: var(--card); }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 4px; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: 0.78rem; }
.facts td { overflow-wrap: anywhere; font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: 0.82rem; }
.facts td:first-child { white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 44%), 1fr));
  gap: 14px 20px; }
.grid > div { min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 14px 20px; }
.pair > div { min-width: 0; }
h3.part { margin: 18px 0 6px; font-size: 0.98rem; }
.bars { margin: 0 0 8px; }
.bar { display: grid; grid-template-columns: minmax(0, 1.4fr) minmax(0, 1fr) 3.6em; gap: 8px; align-items: center;
  font-size: 0.84rem; padding: 1px 0; }
.bar span { overflow-wrap: anywhere; line-height: 1.25; }
.bar small { color: var(--soft); }
.bar i { position: relative; height: 12px; background: linear-gradient(var(--line), var(--line)) 50% 0 / 1px 100%
  no-repeat; }
.bar b { position: absolute; top: 1px; bottom: 1px; border-radius: 2px; }
.bar b.for { background: var(--accent); }
.bar b.against { background: var(--bad); }
.bar em { font-style: normal; text-align: right; font-variant-numeric: tabular-nums; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 10px; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 4px;
  background: var(--line); }
figcaption { font-size: 0.74rem; line-height: 1.3; color: var(--soft); overflow-wrap: anywhere; }
figcaption span { display: block; }
figcaption strong { color: var(--ink); }
.plot { min-width: 0; overflow: hidden; }
@media (max-width: 560px) { main { padding: 12px 8px 40px; } section { padding: 14px 12px; }
  h1 { font-size: 1.4rem; } .scroll { max-height: none; } .grid { gap: 12px 8px; }
  th, td { padding-right: 10px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } .scroll { max-height: none; } }
"""

SCRIPT = """
(function () {
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    var ink = getComputedStyle(document.documentElement).getPropertyValue("--soft").trim();
    document.querySelectorAll(".plotly-graph-div").forEach(function (plot) {
      Plotly.relayout(plot, { "font.color": ink });
    });
  }
  paint();
  // A plot measures its place while the page is still being laid out: let it follow its place from now on.
  var follow = new ResizeObserver(function (changes) {
    changes.forEach(function (change) {
      var plot = change.target.querySelector(".plotly-graph-div");
      if (plot && plot.clientWidth > 0) { Plotly.Plots.resize(plot); }
    });
  });
  document.querySelectorAll(".plot").forEach(function (place) { follow.observe(place); });
  dark.addEventListener("change", paint);
})();
"""
