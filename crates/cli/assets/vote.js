"use strict";
import { address, byId, el, get, number, post } from "./page.js";

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", t: "tie", b: "both_bad", s: "skip" };
const NAMES = { prompt_following: "Prompt following", aesthetic: "Aesthetic", fidelity: "Fidelity", harmlessness: "Harmlessness" };
const KEPT = "visionprefer-voter";
let [question, busy, voter, ratings] = [null, false, null, {}];

function trouble(text) {
  byId("trouble").hidden = !text;
  byId("trouble").textContent = text;
}

/** An image that was asked for; small ones are shown as squares, and none is shown before the other. */
function picture(at) {
  const found = el("img", { alt: question.images > 1 ? (at === 0 ? "left image" : "right image") : "the image" });
  found.src = address("/image", { voter, question: question.question, at });
  found.addEventListener("load", () => found.classList.toggle("small", Math.max(found.naturalWidth, found.naturalHeight) <= 128));
  return found;
}

async function show(next) {
  question = next;
  ratings = {};
  byId("progress").max = Math.max(1, next.of);
  byId("progress").value = next.done;
  byId("about").textContent = `${next.done} of ${next.of}${voter ? `, ${voter}` : ""}`;
  const over = next.question === null;
  byId("compare").hidden = over || next.mode !== "compare";
  byId("rate").hidden = over || next.mode !== "rate";
  byId("prompt").textContent = over ? "That was all. Thank you!" : next.prompt.trim() || "(empty prompt)";
  if (over) byId("images").replaceChildren(el("p", {}, el("button", { type: "button", click: undo }, "Undo the last answer")));
  else {
    const pictures = Array.from({ length: next.images }, (_, at) => picture(at));
    await Promise.all(pictures.map((one) => one.decode().catch(() => trouble("An image cannot be shown; skip it."))));
    if (question !== next) return;
    const choice = (one, at) => el("button", { class: "shown", type: "button", "aria-label": at === 0 ? "Left is better" : "Right is better", click: () => answer(at === 0 ? "left" : "right") }, one);
    byId("images").replaceChildren(...(next.mode === "compare" ? pictures.map(choice) : pictures));
    if (next.mode === "rate") showAspects();
  }
  if (byId("results").open) showResults();
}

function showAspects() {
  const open = question.aspects.find((aspect) => ratings[aspect] === undefined);
  const digit = (aspect) => (value) => {
    const button = el("button", { type: "button", "aria-pressed": String(ratings[aspect] === value) }, String(value));
    button.addEventListener("click", () => rate(aspect, value));
    return button;
  };
  const row = (aspect) => el("div", { class: aspect === open ? "bar aspect open" : "bar aspect" }, el("span", {}, NAMES[aspect] ?? aspect), ...[1, 2, 3, 4, 5].map(digit(aspect)));
  byId("aspects").replaceChildren(...question.aspects.map(row));
}

function rate(aspect, value) {
  ratings[aspect] = value;
  showAspects();
  if (question.aspects.every((one) => ratings[one] !== undefined)) answer("rate");
}

/** One answer at a time: what is pressed while one is on its way is not meant for the next question. */
async function once(work) {
  if (busy) return;
  busy = true;
  try {
    trouble("");
    await show(await work());
  } catch (error) {
    trouble(error.message);
    await show(await get("/api/question", { voter })).catch(() => {});
  } finally {
    busy = false;
  }
}

const answer = (said) => question?.question && once(() => post("/api/vote", {}, { voter, question: question.question, answer: said, ratings: said === "rate" ? ratings : {} }));
const undo = () => once(() => post("/api/undo", { voter }));

const percent = ({ estimate, low, high }) => `${(100 * estimate).toFixed(0)} % [${(100 * low).toFixed(0)}, ${(100 * high).toFixed(0)}]`;

async function showResults() {
  const found = await get("/api/results");
  const told = [];
  for (const one of found.wins) told.push(`${one.model} is preferred to ${one.against} in ${percent(one.rate)}: ${one.won} won, ${one.tied} tied, ${one.lost} lost`);
  for (const one of found.ratings) told.push(`${one.model}, ${NAMES[one.aspect] ?? one.aspect}: ${number(one.mean)} (n = ${one.n})`);
  for (const one of found.agreement) told.push(`${one.with} agrees in ${percent(one.rate)} of ${one.n}`);
  if (found.left) told.push(`the left image is preferred in ${percent(found.left)}; half of the time if its place does not matter`);
  if (found.swapped) told.push(`with the two images exchanged, the answer changed in ${percent(found.swapped.changed)} of ${found.swapped.pairs}`);
  if (found.same) told.push(`asked again, the answer was the same in ${percent(found.same.same)} of ${found.same.items}`);
  const voters = found.voters.map((one) => `${one.voter || "no name"} ${one.votes}`).join(", ");
  const lines = told.map((line) => el("li", {}, line));
  byId("results-body").replaceChildren(el("p", { class: "quiet" }, voters ? `Answers: ${voters}. Intervals are 95 %.` : "No answer yet."), el("ul", { class: "told" }, ...lines));
}

async function begin(name) {
  voter = name.trim();
  try {
    localStorage.setItem(KEPT, voter);
  } catch {
    // Without storage the name is asked for again.
  }
  byId("who").hidden = true;
  await once(() => get("/api/question", { voter }));
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target instanceof HTMLInputElement || !question) return;
  if (event.key === "u" || event.key === "Backspace") {
    event.preventDefault();
    undo();
  } else if (question.mode === "compare" && KEYS[event.key]) {
    event.preventDefault();
    answer(KEYS[event.key]);
  } else if (question.mode === "rate" && event.key === "s") answer("skip");
  else if (question.mode === "rate" && question.question && /^[1-5]$/.test(event.key) && !busy) {
    rate(question.aspects.find((aspect) => ratings[aspect] === undefined), Number(event.key));
  }
});
for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => answer(button.dataset.answer));
for (const button of document.querySelectorAll("[data-undo]")) button.addEventListener("click", undo);
byId("results").addEventListener("toggle", () => byId("results").open && showResults());
byId("who").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(byId("name").value);
});

let kept = null;
try {
  kept = localStorage.getItem(KEPT);
} catch {
  // Then it is asked for.
}
// A name in the address wins: several people on one machine each have a link.
const given = new URLSearchParams(location.search).get("voter") ?? kept;
if (given === null) {
  byId("who").hidden = false;
  byId("name").focus();
} else {
  byId("name").value = given;
  await begin(given);
}
