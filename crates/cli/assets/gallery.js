"use strict";
import { address, byId, copyButton, el, get, image, number } from "./page.js";

const id = new URLSearchParams(location.search).get("id");
let [from, total, asked, known] = [0, 0, 0, false];

function options(select, all, values, label = (value) => value) {
  select.replaceChildren(el("option", { value: "" }, all), ...values.map((value) => el("option", { value }, label(value))));
}

function score({ name, before, score: now }) {
  const course = before === null || before === undefined ? number(now) : `${number(before)} → ${number(now)}`;
  return el("li", {}, el("span", { class: "name" }, `${name} `), el("span", { class: "number" }, course));
}

function card(item) {
  const figure = ({ label, path }) => el("figure", {}, image(id, path, `${label}: ${item.prompt}`, 420), el("figcaption", {}, label));
  const pictures = item.pictures.map(figure);
  const images = el("div", { class: pictures.length < 2 ? "images alone" : "images" }, ...pictures);
  const about = [item.seed === null ? null : `seed ${item.seed}`, item.category].filter(Boolean).join(", ");
  const parts = [images, el("p", { class: "prompt", dir: "auto" }, item.prompt.trim() || "(no prompt)"), el("p", { class: "quiet" }, about)];
  // The terms of a reward are folded, its own score is not.
  const isTerm = ({ name }) => item.scores.some((other) => name.startsWith(`${other.name}/`));
  const [scores, terms] = [item.scores.filter((one) => !isTerm(one)), item.scores.filter(isTerm)];
  parts.push(el("ul", { class: "scores" }, ...scores.map(score)));
  if (terms.length) parts.push(el("details", {}, el("summary", {}, "Terms"), el("ul", { class: "scores" }, ...terms.map(score))));
  if (item.parameters) parts.push(el("details", {}, el("summary", {}, "Parameters"), el("pre", { class: "command" }, item.parameters)));
  if (item.command) parts.push(el("p", { class: "bar" }, copyButton("Copy the sample command", item.command)));
  return el("article", { class: "pair" }, ...parts);
}

async function show(again) {
  const turn = (asked += 1);
  if (again) from = 0;
  const choice = Object.fromEntries(new FormData(byId("choice")));
  const found = await get("/api/gallery", { id, from, ...choice });
  if (turn !== asked) return;
  if (!known) {
    known = true;
    byId("title").textContent = document.title = found.name;
    options(byId("sort"), "as they lie", found.sorts, (sort) => (sort.startsWith("score:") ? sort.slice(6) : `change of ${sort.slice(11)}`));
    options(byId("category"), "all", found.categories);
    options(byId("model"), "all", found.models);
    byId("of-category").hidden = found.categories.length === 0;
    byId("of-model").hidden = found.models.length < 2;
    byId("report").hidden = !found.report;
    byId("report").href = address("/report", { id });
  }
  total = found.total;
  from = found.from + found.items.length;
  byId("about").textContent = `${total} ${total === 1 ? "image" : found.kind === "evaluation" ? "images of models, beside the baseline's" : "images"}`;
  if (again) byId("items").replaceChildren();
  byId("items").append(...found.items.map(card));
  byId("more").hidden = from >= total;
}

byId("choice").addEventListener("change", () => show(true));
byId("choice").addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", () => show(false));
// What is below comes by itself when one scrolls there.
new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && from > 0 && from < total && show(false), { rootMargin: "600px" }).observe(byId("more"));
try {
  await show(true);
} catch (error) {
  byId("about").textContent = error.message;
}
