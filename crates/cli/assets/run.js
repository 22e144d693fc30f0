"use strict";
import { Chart } from "./chart.js";
import { address, byId, copyButton, el, facts, get, listen, post } from "./page.js";
import { showNews, showPreviewsOf } from "./previews.js";

const ids = new URLSearchParams(location.search).getAll("id");
const several = ids.length > 1;
/** After so many points that came one by one, the server thins the curves out again. */
const REFRESH = 150;
const [charts, statuses] = [new Map(), new Map()];
let [positions, added, loading] = [[], 0, false];

const nameOf = (id) => statuses.get(id)?.name ?? id;
const command = (run) => `visionprefer train --resume ${/^[\w./-]+$/.test(run.folder) ? run.folder : `'${run.folder.replaceAll("'", "'\\''")}'`}`;

async function loadCharts() {
  loading = true;
  try {
    const found = await get("/api/charts", { id: ids });
    for (const plan of found.charts) {
      for (const series of plan.series) series.shown = several ? `${nameOf(series.run)}: ${series.name}` : series.name;
      if (!charts.has(plan.title)) {
        const chart = new Chart(plan, several ? (series) => ids.indexOf(series.run) : null);
        charts.set(plan.title, chart);
        byId("charts").append(chart.element);
      }
      charts.get(plan.title).update(plan, found.marks);
    }
    [positions, added] = [found.positions, 0];
  } finally {
    loading = false;
  }
}

/** A run's name, how it is, and its buttons. They stay the same elements, so that they can be pressed while numbers change. */
function statusLine(run) {
  const line = el("div", { class: "line" });
  const [state, told, progress] = [el("span"), el("span"), el("progress", { "aria-label": `Updates of ${run.name}` })];
  const save = el("button", { type: "button" }, "Save now");
  const stop = el("button", { type: "button" }, "Stop…");
  save.addEventListener("click", () => ask("/api/save", run.id, save));
  stop.addEventListener("click", () => confirmStop(run.id, stop));
  if (several) line.append(el("a", { href: address("/run", { id: run.id }) }, run.name));
  line.append(state, told, save, stop);
  const end = el("p", { class: "bar" });
  const element = el("li", {}, line, progress, end);
  const update = (now) => {
    [state.className, state.textContent] = [`state ${now.state}`, now.state];
    told.textContent = [now.algorithm, ...facts(now)].filter(Boolean).join(" · ");
    [progress.hidden, progress.max, progress.value] = [!now.of, now.of ?? 1, Math.min(now.step, now.of ?? 1)];
    const trains = now.state === "training";
    save.hidden = stop.hidden = !trains;
    save.disabled = now.asked.includes("save");
    stop.disabled = stop.dataset.asked === "yes" || now.asked.includes("stop");
    stop.textContent = stop.disabled ? "Stopping after this batch…" : "Stop…";
    if (!trains) stop.dataset.asked = "";
    const resumes = ["stopped", "silent"].includes(now.state);
    if (resumes !== end.hasChildNodes()) end.replaceChildren(...(resumes ? [copyButton("Copy the command that goes on", command(now))] : []));
  };
  return { element, update };
}

const lines = new Map();
function showStatus(run) {
  const before = statuses.get(run.id);
  statuses.set(run.id, run);
  if (!lines.has(run.id)) {
    lines.set(run.id, statusLine(run));
    byId("statuses").append(lines.get(run.id).element);
  }
  lines.get(run.id).update(run);
  if (!several) {
    byId("title").textContent = run.name;
    document.title = `${run.step}${run.of ? `/${run.of}` : ""} ${run.name}`;
    byId("report").hidden = !run.report;
    byId("report").href = address("/report", { id: run.id });
    byId("findings").hidden = run.findings.length === 0;
    const found = run.findings.map(({ step, rule, reason }) => el("li", { class: "notice bad" }, el("strong", {}, `step ${step}: ${rule}`), el("p", {}, reason)));
    byId("findings-list").replaceChildren(...found);
    if (before && before.findings.length !== run.findings.length) loadCharts();
  }
  if (!before || before.previews !== run.previews) showNews(run);
}

async function ask(path, id, button) {
  button.disabled = true;
  try {
    await post(path, { id });
    trouble("");
  } catch (error) {
    button.disabled = false;
    trouble(error.message);
  }
}

function trouble(text) {
  byId("trouble").hidden = !text;
  byId("trouble").textContent = text;
}

function confirmStop(id, button) {
  const dialog = byId("stop");
  byId("stop-command").textContent = command(statuses.get(id));
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue !== "stop") return;
    button.dataset.asked = "yes";
    button.textContent = "Stopping after this batch…";
    ask("/api/stop", id, button).then(() => {
      if (!byId("trouble").hidden) button.dataset.asked = "";
    });
  };
  dialog.showModal();
}

function addLines({ run, lines: news }) {
  for (const line of news) for (const chart of charts.values()) added += chart.add(run, line) ? 1 : 0;
  const known = new Set([...charts.values()].flatMap((chart) => chart.plan.series.filter((series) => series.run === run).map((series) => series.metric)));
  const left = ["step", "seconds", "reward_std"];
  const isNew = news.some((line) => Object.keys(line).some((name) => !known.has(name) && !left.includes(name)));
  // A preview's interval comes with its images' scores, which the server reads.
  const hasPreview = news.some((line) => Object.keys(line).some((name) => name.startsWith("preview/")));
  if ((isNew || hasPreview || added > REFRESH * Math.max(1, charts.size)) && !loading) loadCharts();
}

async function showConfigs() {
  const found = await Promise.all(ids.map((id) => get("/api/details", { id })));
  if (several) {
    const keys = [...new Set(found.flatMap((run) => Object.keys(run.keys)))];
    const differing = keys.filter((key) => new Set(found.map((run) => run.keys[key])).size > 1);
    const head = el("tr", {}, el("th", {}, "key"), ...found.map((run) => el("th", {}, run.name)));
    const row = (key) => el("tr", {}, el("th", {}, key), ...found.map((run) => el("td", { class: "prose" }, run.keys[key] ?? "–")));
    const table = el("table", { class: "keys" }, el("thead", {}, head), el("tbody", {}, ...differing.map(row)));
    byId("differences").replaceChildren(differing.length ? el("div", { class: "scroll" }, table) : el("p", {}, "The configs are the same."));
  }
  const facts = (provenance) => ["versions", "hardware", "time"].flatMap((part) => provenance?.[part] ?? []).map(({ name, value }) => `${name}: ${value}`);
  const config = (run) => {
    const from = run.provenance ? [el("pre", { class: "command" }, run.provenance.command), el("p", { class: "quiet" }, facts(run.provenance).join(" · "))] : [];
    return el("details", {}, el("summary", {}, several ? `${run.name}: config and command` : "Config and command"), ...from, el("pre", {}, run.config ?? ""));
  };
  byId("configs").replaceChildren(...found.map(config));
}

async function load() {
  for (const run of await Promise.all(ids.map((id) => get("/api/status", { id })))) showStatus(run);
  await loadCharts();
}

if (several) byId("title").textContent = `${ids.length} runs`;
try {
  await load();
  showPreviewsOf([...statuses.values()]);
  await showConfigs();
  const where = () => address("/events", { id: ids, after: positions.map((position) => position.join(",")) });
  listen(where, { status: showStatus, metrics: addLines, reload: loadCharts }, load);
} catch (error) {
  trouble(error.message);
}
