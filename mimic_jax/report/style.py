"""The page's style sheet."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f8; --ink: #1b1f23; --quiet: #5b6570; --line: #dfe3e7; --link: #0060a0;
  --blue: #0072b2; --vermillion: #d55e00; --green: #009e73; --purple: #b8568c; --orange: #d18f00;
  --sky: #3fa4e0; --grey: #8c8c8c; --yellow: #b5a600; --heat: 0, 90, 150; --warn: #fff6e0; --warn-line: #e69f00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e7eaed; --quiet: #9aa5b0; --line: #31373d; --link: #6cb8f0;
    --blue: #4ba6e0; --vermillion: #f07f34; --green: #2fc198; --purple: #dd93bd; --orange: #eeb030;
    --sky: #8fd0f7; --grey: #a5a5a5; --yellow: #e6d84a; --heat: 28, 108, 168; --warn: #2b2413; --warn-line: #b98a1c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif;
}
h1, h2, h3, h4 { line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; }
h1 { font-size: 1.9rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .25rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 2.25rem 0 .5rem; }
h4 { font-size: .86rem; margin: 0; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.quiet { color: var(--quiet); }
.small { font-size: .86rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .9rem 0 0; font-size: .9rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.note { border-left: 3px solid var(--blue); padding: .1rem 0 .1rem 1rem; margin: 1.25rem 0; }
.warning { background: var(--warn); border-left: 3px solid var(--warn-line); padding: .6rem 1rem; margin: 1rem 0; }
.warning ul { margin: .25rem 0; padding-left: 1.1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; margin: 1.75rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.15rem; }
.card p { margin: .15rem 0; font-size: .86rem; color: var(--quiet); }
.card .top { display: flex; justify-content: space-between; gap: .5rem; align-items: baseline; }
.card .value { font-size: 2.1rem; font-weight: 650; line-height: 1.2; letter-spacing: -0.02em; color: var(--ink); }
.card .value small { display: inline-block; font-size: .86rem; font-weight: 400; letter-spacing: 0; color: var(--quiet); }
.bar { height: 4px; border-radius: 2px; background: var(--line); margin-top: .7rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--blue); }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); font-size: .8rem; vertical-align: bottom; }
tbody th { color: var(--ink); font-size: .88rem; font-weight: 500; vertical-align: middle; }
th:first-child, td.text, th.text { text-align: left; }
th:first-child { padding-left: 0; }
table.results { width: 100%; }
table.results :is(th, td) { padding-inline: .45rem; }
table.results :is(th, td):first-child { padding-left: 0; }
table.results td:nth-child(3) { font-weight: 650; }
tr:has(th:empty) td { color: var(--quiet); font-size: .82rem; font-weight: 400 !important; }
td small { display: block; font-weight: 400; font-size: .72rem; color: var(--quiet); }
table.classes :is(th, td) { padding-inline: .4rem; }
table.classes :is(th, td):first-child { padding-left: 0; }
.share { display: block; padding-right: .2rem; background: linear-gradient(to right, rgba(var(--heat), .22) calc(var(--v) * 100%), transparent 0); min-width: 4.5rem; }
.confusion td { text-align: center; min-width: 3rem; height: 2.9rem; padding: .2rem; border: 2px solid var(--paper); line-height: 1.15; }
.confusion td small { font-size: .7rem; color: inherit; opacity: .8; }
.confusion td.dark { color: #fff; }
.confusion td.hit { outline: 1px solid var(--quiet); outline-offset: -3px; }
.confusion th { border: 0; }
.confusion thead th { text-align: center; font-weight: 500; font-size: .74rem; padding: .2rem .1rem; }
.confusion tbody th { text-align: right; padding-right: .7rem; }
.whole { grid-column: 1 / -1; margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16.5rem, 100%), 1fr)); gap: 1.25rem 1.75rem; margin: 1rem 0; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin-top: .3rem; overflow: visible; }
figure svg text { font-family: inherit !important; }
figcaption p { margin: .15rem 0 .5rem; }
.row, .pair { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: start; }
.pair > div { min-width: 0; max-width: 100%; }
.pair > div > p { width: 0; min-width: 100%; }
.picture { margin: 0 0 1.5rem; }
.picture { max-width: 100%; min-width: min(20rem, 100%); }
.sheet { display: grid; gap: .6rem .4rem; font-size: .74rem; line-height: 1.25; color: var(--quiet); text-align: center; overflow-wrap: anywhere; }
.sheet b { font-weight: 500; }
.sheet svg { display: block; width: 100%; height: auto; margin: 0 0 .2rem; border-radius: 3px; overflow: hidden; }
.half { width: 26rem; max-width: 100%; }
.save { font-size: .74rem; font-weight: 400; text-decoration: none; margin-left: .6rem; letter-spacing: 0; }
figure > figcaption .save:first-child { margin-left: 0; }
.copy { user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; }
.tree { font-size: .84rem; width: 100%; }
.tree th, .tree td { text-align: left; white-space: normal; vertical-align: top; padding: .3rem .7rem .3rem 0; overflow-wrap: anywhere; }
.tree th { color: var(--quiet); font-weight: 500; font-size: .84rem; width: 11rem; }
.tree .tree th { width: 9rem; }
.tree .tree tr:last-child > * { border-bottom: 0; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--link); font-size: .92rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.5; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .stack, .stack tbody, .stack tr, .stack th, .stack td { display: block; border: 0; padding: .05rem 0 !important; }
  .stack thead, .stack td:empty { display: none; }
  .stack tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .stack tbody th { font-weight: 650; }
  .stack td { text-align: right !important; white-space: normal; }
  .stack td::before { content: attr(data-label); float: left; color: var(--quiet); font-weight: 400; }
  .stack td small { display: inline; margin-left: .5rem; }
  .classes :is(th, td) { padding-inline: .15rem !important; font-size: .72rem !important; }
  .classes th { white-space: normal; }
  .classes small { font-size: .62rem; white-space: nowrap; }
  .share { min-width: 3rem; }
  .confusion td { min-width: 0; width: 2.5rem; font-size: .74rem; border-width: 1px; }
  .confusion td small { font-size: .62rem; }
  .confusion thead th { writing-mode: vertical-rl; text-align: left; }
  .confusion tbody th { font-size: .74rem; padding-right: .3rem; }
  .tree, .tree tbody, .tree tr, .tree th, .tree td { display: block; width: auto; border: 0; padding: 0; }
  .tree tr { margin: .4rem 0; }
  .tree .tree { padding-left: .8rem; }
}
@media print { details { display: none; } .card, .picture { break-inside: avoid; } }
"""
