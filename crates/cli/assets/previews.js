"use strict";
import { address, byId, el, get, image, number } from "./page.js";

// The previews of one run: a slider over steps, the images of the chosen one, and any of them large, before and after at one prompt and seed.

const state = { run: null, total: 0, first: null, shown: null, asked: 0, open: null };
const same = (one, other) => one.prompt === other.prompt && one.seed === other.seed;

function scores(one, before) {
  const line = (name) => {
    const from = before && before !== one ? `${number(before.scores[name])} → ` : "";
    return el("li", {}, el("span", { class: "name" }, `${name} `), el("span", { class: "number" }, `${from}${number(one.scores[name])}`));
  };
  // The terms of a reward are in its curves.
  return Object.keys(one.scores).filter((name) => !name.includes("/")).map(line);
}

function cell(one) {
  const before = state.first?.images.find((other) => same(one, other));
  const picture = image(state.run.id, one.path, one.prompt, 320);
  const button = el("button", { class: "shown", type: "button", "aria-label": `Show large: ${one.prompt}, seed ${one.seed}` }, picture);
  button.addEventListener("click", () => openLarge(one));
  const prompt = el("p", { class: "prompt", dir: "auto" }, one.prompt.trim() || "(empty prompt)");
  return el("figure", { class: "cell" }, button, prompt, el("p", { class: "quiet" }, `seed ${one.seed}`), el("ul", { class: "scores" }, ...scores(one, before)));
}

/** Shows a preview; of several that are asked for quickly, the last. */
async function show(at) {
  const number = (state.asked += 1);
  const found = await get("/api/preview", { id: state.run.id, at });
  if (number !== state.asked) return;
  state.first ??= await get("/api/preview", { id: state.run.id, at: 0 });
  if (number !== state.asked) return;
  state.shown = found;
  state.total = found.total;
  byId("previews").hidden = found.total === 0;
  for (const slider of [byId("preview-at"), byId("large-at")]) {
    slider.max = Math.max(0, found.total - 1);
    slider.value = found.at ?? 0;
    slider.setAttribute("aria-valuetext", `step ${found.step}`);
  }
  byId("preview-step").textContent = byId("large-step").textContent = found.step ?? "";
  const grid = found.grid ? [el("figure", { class: "cell" }, image(state.run.id, found.grid, `previews of step ${found.step}`))] : [];
  byId("preview-images").replaceChildren(...grid, ...found.images.map(cell));
  if (state.open) showLarge();
}

/** There may be more previews than before. */
export function showNews(run) {
  if (run.id !== state.run?.id) return;
  state.run = run;
  if (byId("preview-newest").checked) show(null);
  else for (const slider of [byId("preview-at"), byId("large-at")]) slider.max = Math.max(0, run.previews - 1);
}

function choose(run) {
  Object.assign(state, { run, first: null, shown: null, open: null });
  show(null);
}

export function showPreviewsOf(runs) {
  const list = byId("preview-run");
  byId("of-run").hidden = runs.length < 2;
  list.replaceChildren(...runs.map((run) => el("option", { value: run.id }, run.name)));
  list.addEventListener("change", () => choose(runs.find((run) => run.id === list.value)));
  choose(runs[0]);
}

function openLarge(one) {
  state.open = one;
  showLarge();
  byId("large").showModal();
}

function showLarge() {
  const [one, before] = [state.shown, state.first].map((preview) => preview.images.find((other) => same(state.open, other)));
  if (!one) return;
  const first = before ?? one;
  byId("large-prompt").textContent = `${one.prompt} (seed ${one.seed})`;
  // Without an address they would be broken images until one is opened.
  if (!byId("large-after")) byId("large-images").append(el("img", { id: "large-before" }), el("img", { id: "large-after" }));
  for (const [name, shown] of [["large-before", first], ["large-after", one]]) {
    const picture = byId(name);
    picture.src = address("/image", { id: state.run.id, path: shown.path });
    picture.onload = () => picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) <= 128);
    picture.alt = `${shown === first ? "before" : "after"}: ${shown.prompt}`;
  }
  byId("large-labels").textContent = `step ${state.first.step} | step ${state.shown.step}`;
  byId("large-scores").replaceChildren(...scores(one, first));
}

byId("large").addEventListener("close", () => (state.open = null));
byId("large-wipe").addEventListener("input", (event) => byId("large-images").style.setProperty("--cut", `${event.target.value}%`));
for (const slider of [byId("preview-at"), byId("large-at")]) {
  slider.addEventListener("input", () => {
    byId("preview-newest").checked = Number(slider.value) === Number(slider.max);
    show(Number(slider.value));
  });
}
byId("preview-newest").addEventListener("change", (event) => event.target.checked && show(null));
