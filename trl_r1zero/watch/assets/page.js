"use strict";
// Data: {runs: [run_data of each], served}. Answers come on demand: out of the page, or of its server.

const page = JSON.parse(document.getElementById("data").textContent);
const RUN_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"];
const POLL_MS = 2000;
const ROW_PX = 44;
const byId = (id) => document.getElementById(id);
const colourOf = (number) => RUN_COLOURS[number % RUN_COLOURS.length];
const several = () => page.runs.length > 1;

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function duration(seconds) {
  if (seconds === null) return "";
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

const number = (value) => (Number.isInteger(value) ? String(value) : Number(value.toPrecision(4)).toString());

// States

function showStates() {
  byId("states").replaceChildren(
    ...page.runs.map((run, index) => {
      const { state } = run;
      const parts = [`${run.step_name} ${state.step}${state.planned ? ` of ${state.planned}` : ""}`];
      parts.push(`${duration(state.elapsed)}${state.status === "running" ? " so far" : ""}`);
      if (state.eta !== null) parts.push(`${duration(state.eta)} left`);
      if (state.last !== null) parts.push(`${state.metric} ${number(state.last)}, best ${number(state.best)}`);
      if (state.reason) parts.push(state.reason);
      parts.push(`last line ${new Date(1000 * state.updated).toLocaleString()}`);
      const item = element("li");
      if (several()) {
        const swatch = element("span", { class: "swatch" });
        swatch.style.background = colourOf(index);
        item.append(swatch, `${run.name}: `);
      }
      item.append(element("span", { class: `status ${state.status}`, textContent: state.status }), ` · ${parts.join(" · ")}`);
      return item;
    }),
  );
}

// Curves

const charts = new Map(); // title -> {chart, shape}

/** The panels of all runs by title: of one run all curves, of several the first curve of each. */
function panels() {
  const found = new Map();
  page.runs.forEach((run, index) => {
    for (const panel of run.panels) {
      const curves = several()
        ? [{ ...panel.series[0], label: run.name, colour: colourOf(index), error: undefined }]
        : panel.series;
      if (!found.has(panel.title)) found.set(panel.title, { ...panel, series: [] });
      found.get(panel.title).series.push(...curves);
    }
  });
  return [...found.values()];
}

/** Columns for uPlot: x, each curve, and the edges of the bands. */
function columns(panel) {
  const tables = [];
  for (const curve of panel.series) {
    const table = [curve.x, curve.y];
    if (curve.error) {
      table.push(curve.y.map((y, i) => y - curve.error[i]), curve.y.map((y, i) => y + curve.error[i]));
    }
    tables.push(table);
  }
  return uPlot.join(tables);
}

function isLog(panel) {
  const values = panel.series.flatMap((curve) => curve.y);
  return panel.log && Math.min(...values) > 0 && Math.max(...values) > 50 * Math.min(...values);
}

function chartOptions(panel, width) {
  const style = getComputedStyle(document.documentElement);
  const front = style.getPropertyValue("--soft").trim();
  const grid = style.getPropertyValue("--line").trim();
  const axis = { stroke: front, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
  const series = [{ label: panel.x_label }];
  const bands = [];
  for (const curve of panel.series) {
    const value = (_, y) => (y === null || y === undefined ? "–" : number(y));
    series.push({ label: curve.label, stroke: curve.colour, width: 2, spanGaps: true, value,
      points: { show: curve.x.length < 40, size: 5 } });
    if (curve.error) {
      const edge = { stroke: "transparent", spanGaps: true, points: { show: false }, label: "± 1 standard error", value };
      series.push({ ...edge, class: "edge" }, { ...edge, class: "edge" });
      bands.push({ series: [series.length - 1, series.length - 2], fill: `${curve.colour}33` });
    }
  }
  return {
    width, height: 250, series, bands,
    cursor: { sync: { key: panel.x_label } },
    scales: { x: { time: false }, y: { distr: isLog(panel) ? 3 : 1 } },
    axes: [{ ...axis, label: panel.x_label, labelSize: 20, font: "11px system-ui" },
      { ...axis, label: panel.y_label, labelSize: 20, size: 58, font: "11px system-ui",
        values: (_, ticks) => ticks.map((t) => (t === null ? "" : number(t))) }],
  };
}

function showCurves() {
  const host = byId("curves");
  if (host.hidden) return;
  for (const panel of panels()) {
    const shape = JSON.stringify([panel.series.map((c) => [c.label, Boolean(c.error), c.x.length < 40]), isLog(panel)]);
    const there = charts.get(panel.title);
    if (there && there.shape === shape) {
      there.chart.setData(columns(panel));
      continue;
    }
    const box = there ? there.box : element("div", { class: "panel" }, element("h2", { textContent: panel.title }));
    if (there) there.chart.destroy();
    else host.append(box);
    const chart = new uPlot(chartOptions(panel, box.clientWidth - 22), columns(panel), box);
    // The edges of a band need no line in the legend.
    chart.root.querySelectorAll(".u-legend .edge").forEach((row) => { row.style.display = "none"; });
    charts.set(panel.title, { chart, box, shape });
  }
}

function redrawCurves() {
  charts.forEach(({ chart, box }) => { chart.destroy(); box.remove(); });
  charts.clear();
  showCurves();
}

// Answers

const form = byId("filters");
let table = { key: "", rows: [], groups: [], rules: "" };
let shown = []; // groups that pass the filters
let chosen = 0;

async function fetchTable(run, name) {
  if (page.served) {
    const response = await fetch(`table?run=${run}&name=${encodeURIComponent(name)}`);
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  }
  const packed = [...document.querySelectorAll("script.table")].find((one) => one.dataset.name === name);
  if (!packed) throw new Error("This table is not in the page: it would be too large. `trl-r1zero watch` shows it.");
  const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const isRight = (row) => row.answer_reward === undefined ? row.reward > 0 : row.answer_reward > 0;

/** Rows of one question, which stand together, whatever their number. */
function groupsOf(rows) {
  const groups = new Map();
  rows.forEach((row) => {
    const key = JSON.stringify([row.prompt, row.ground_truth]);
    if (!groups.has(key)) groups.set(key, { key, prompt: row.prompt, truth: row.ground_truth, rows: [] });
    groups.get(key).rows.push(row);
  });
  const prompts = [...groups.values()].map((group) => group.prompt);
  // What all prompts begin and end with says nothing about a question.
  const start = prompts.length > 1 ? common(prompts) : 0;
  const end = prompts.length > 1 ? common(prompts.map((p) => [...p.slice(start)].reverse().join(""))) : 0;
  groups.forEach((group) => { group.title = group.prompt.slice(start, group.prompt.length - end).trim() || group.prompt; });
  return [...groups.values()];
}

function common(texts) {
  let length = texts[0].length;
  for (const text of texts) while (!text.startsWith(texts[0].slice(0, length))) length -= 1;
  return length;
}

function fillSelect(select, options, keep) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  if (keep && options.some(([value]) => value === before)) select.value = before;
}

function showTableNames(keep) {
  fillSelect(form.run, page.runs.map((run, index) => [String(index), run.name]), true);
  byId("label-run").hidden = !several();
  const tables = page.runs[Number(form.run.value)].tables.toReversed();
  fillSelect(form.table, tables.map((one) => [one.name, `${one.kind}, step ${one.step}`]), keep);
}

async function showTable() {
  const [run, name] = [form.run.value, form.table.value];
  const key = `${run} ${name}`;
  if (!name) {
    byId("count").textContent = "This run has written no answers yet.";
  } else if (key !== table.key) {
    byId("count").textContent = "reading …";
    let rows;
    try {
      rows = await fetchTable(run, name);
    } catch (error) {
      rows = [];
      table = { key, rows, groups: [] };
      byId("count").textContent = error.message;
      return;
    }
    const before = shown[chosen]?.key;
    table = { key, rows, groups: groupsOf(rows) };
    const rules = [...new Set(rows.map((row) => row.rule).filter(Boolean))].sort();
    fillSelect(form.rule, [["", "any"], ...rules.map((rule) => [rule, rule])], true);
    filterRows(before);
  }
}

function passes(row) {
  const { verdict, rule, shortest, longest, text } = form;
  const words = text.value.toLowerCase();
  return (
    (verdict.value !== "right" || isRight(row)) &&
    (verdict.value !== "wrong" || !isRight(row)) &&
    (verdict.value !== "unformatted" || !(row.format_reward > 0)) &&
    (verdict.value !== "truncated" || row.truncated) &&
    (!rule.value || row.rule === rule.value) &&
    (!shortest.value || row.length >= Number(shortest.value)) &&
    (!longest.value || row.length <= Number(longest.value)) &&
    (!words || row.prompt.toLowerCase().includes(words) || row.response.toLowerCase().includes(words))
  );
}

/** Show the groups that pass; go on with the question of this key, if it is among them. */
function filterRows(key) {
  const mixed = form.verdict.value === "mixed";
  shown = [];
  let rows = 0;
  for (const group of table.groups) {
    const passing = group.rows.filter(passes);
    const right = group.rows.filter(isRight).length;
    if (!passing.length || (mixed && (right === 0 || right === group.rows.length))) continue;
    shown.push({ ...group, passing, right });
    rows += passing.length;
  }
  byId("count").textContent = `${rows} of ${table.rows.length} answers, ${shown.length} of ${table.groups.length} questions`;
  chosen = Math.max(0, shown.findIndex((group) => group.key === key));
  byId("rows").style.height = `${shown.length * ROW_PX}px`;
  scrollToChosen();
  showRows();
  showQuestion();
}

function scrollToChosen() {
  const list = byId("questions");
  const [top, height] = [chosen * ROW_PX, list.clientHeight];
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_PX > list.scrollTop + height) list.scrollTop = top + ROW_PX - height;
}

/** Only rows in sight are in the document, so a list of any length scrolls. */
function showRows() {
  const list = byId("questions");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - 4);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + 4);
  const rows = shown.slice(first, last).map((group, offset) => {
    const index = first + offset;
    const row = element("div", { class: "row", id: `row-${index}`, role: "option", "aria-selected": String(index === chosen) },
      element("div", { class: "text", textContent: group.title }),
      element("div", { class: "facts", textContent: `${group.right} of ${group.rows.length} right · truth ${group.truth}` }));
    row.style.top = `${index * ROW_PX}px`;
    row.onclick = () => choose(index);
    return row;
  });
  byId("rows").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", shown.length ? `row-${chosen}` : "");
}

function choose(index) {
  chosen = Math.max(0, Math.min(shown.length - 1, index));
  scrollToChosen();
  showRows();
  showQuestion();
}

const TOKEN_NUMBERS = ["", "log-probability", "entropy", "ratio"];

function shade(value, kind) {
  // Log-probability: red where the token was unlikely. Entropy: blue where much else was possible.
  // Ratio: red where the token has become less likely than it was sampled, blue where more.
  const strength = [0, 1 - Math.exp(value), value / 2, Math.abs(Math.log2(value))][kind];
  const isRed = kind === 1 || (kind === 3 && value < 1);
  return `rgb(${isRed ? "213 94 0" : "0 114 178"} / ${0.65 * Math.min(1, strength)})`;
}

function responseText(row) {
  const kind = Number(form.colour.value);
  if (!kind) return element("pre", { textContent: row.response });
  const known = row.tokens?.some((token) => (token[kind] ?? null) !== null);
  if (!known) return element("pre", { textContent: `${row.response}\n(no ${TOKEN_NUMBERS[kind]} of these tokens is known)` });
  return element("pre", {}, ...row.tokens.map((token) => {
    const title = token.slice(1).map((value, n) => `${TOKEN_NUMBERS[n + 1]} ${value ?? "unknown"}`).join(", ");
    const span = element("span", { textContent: token[0], title });
    if ((token[kind] ?? null) !== null) span.style.background = shade(token[kind], kind);
    return span;
  }));
}

function answerCard(row, index) {
  const facts = ["reward", "format_reward", "answer_reward", "advantage", "length", "entropy", "rule"]
    .filter((name) => row[name] !== undefined && row[name] !== null)
    .map((name) => `${name.replace("_", " ")} ${typeof row[name] === "number" ? number(row[name]) : row[name]}`);
  if (row.truncated) facts.push("truncated");
  return element("article", { class: `answer ${isRight(row) ? "right" : "wrong"}` },
    element("span", { class: "verdict", textContent: `${index + 1} ${isRight(row) ? "right" : "wrong"}` }),
    element("div", { class: "facts", textContent: facts.join(" · ") }), responseText(row));
}

function showQuestion() {
  const host = byId("question");
  const group = shown[chosen];
  if (!group) {
    host.replaceChildren();
    return;
  }
  const cards = element("div", { id: "group" }, ...group.passing.map(answerCard));
  host.replaceChildren(element("h2", { textContent: group.title }),
    element("div", { class: "facts", textContent: `truth ${group.truth} · ${group.right} of ${group.rows.length} right` }),
    element("details", {}, element("summary", { textContent: "prompt" }), element("pre", { textContent: group.prompt })),
    cards, element("button", { type: "button", id: "over-steps", textContent: "This question in the other tables", onclick: showOverSteps }));
  host.scrollTop = 0;
}

/** The chosen question in every table of the run, by step. */
async function showOverSteps() {
  const group = shown[chosen];
  const run = Number(form.run.value);
  byId("over-steps").disabled = true;
  const found = element("div", { id: "steps" });
  byId("over-steps").replaceWith(found);
  for (const one of page.runs[run].tables) {
    if (one.name === form.table.value) continue;
    let rows = [];
    try {
      rows = await fetchTable(String(run), one.name);
    } catch { /* not in the page: the choice of that table says so */ }
    const same = rows.filter((row) => JSON.stringify([row.prompt, row.ground_truth]) === group.key);
    if (!same.length) continue;
    found.append(element("h2", { textContent: `${one.kind}, step ${one.step}: ${same.filter(isRight).length} of ${same.length} right` }),
      ...same.map(answerCard));
  }
  if (!found.children.length) found.append("No other table has this question.");
}

// Settings

function showSettings() {
  const keys = [...new Set(page.runs.flatMap((run) => Object.keys(run.settings)))].sort();
  const only = byId("differences").checked;
  byId("label-differences").hidden = !several();
  const rows = [];
  for (const key of keys) {
    const values = page.runs.map((run) => run.settings[key] ?? "");
    const differs = new Set(values).size > 1;
    if (only && !differs) continue;
    rows.push(element("tr", { class: differs ? "differs" : "" }, element("th", { textContent: key }),
      ...values.map((value) => element("td", { textContent: value }))));
  }
  const heads = ["", ...page.runs.map((run) => run.name)].map((text) => element("th", { textContent: text }));
  byId("settings-table").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
}

// The whole page

const tabs = [...document.querySelectorAll('[role="tab"]')];

function openTab(tab) {
  for (const one of tabs) {
    const open = one === tab;
    one.setAttribute("aria-selected", String(open));
    one.tabIndex = open ? 0 : -1;
    byId(one.getAttribute("aria-controls")).hidden = !open;
  }
  if (tab.id === "tab-curves") showCurves();
  if (tab.id === "tab-answers") showTable().then(showRows);
}

function showAll() {
  showStates();
  showCurves();
  showSettings();
  showTableNames(true);
}

async function poll() {
  try {
    const response = await fetch("runs");
    if (response.ok) {
      page.runs = await response.json();
      showAll();
      if (!byId("answers").hidden) await showTable();
    }
  } catch { /* the server has ended: what is shown stays */ }
  setTimeout(poll, POLL_MS);
}

tabs.forEach((tab, index) => {
  tab.onclick = () => openTab(tab);
  tab.onkeydown = (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = tabs[(index + move + tabs.length) % tabs.length];
    openTab(next);
    next.focus();
  };
});
byId("questions").onscroll = showRows;
byId("questions").onkeydown = (event) => {
  const size = Math.max(1, Math.floor(byId("questions").clientHeight / ROW_PX) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: size, PageUp: -size, Home: -Infinity, End: Infinity };
  if (!(event.key in moves)) return;
  event.preventDefault();
  choose(chosen + moves[event.key]);
};
form.onsubmit = (event) => event.preventDefault();
form.oninput = (event) => {
  if (event.target === form.run) showTableNames(false);
  if (event.target === form.run || event.target === form.table) showTable();
  else if (event.target === form.colour) showQuestion();
  else filterRows(shown[chosen]?.key);
};
byId("differences").onchange = showSettings;
matchMedia("(prefers-color-scheme: dark)").onchange = redrawCurves;
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) redrawCurves();
  width = innerWidth;
});
showAll();
if (page.served) setTimeout(poll, POLL_MS);
