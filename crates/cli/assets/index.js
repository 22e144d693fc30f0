"use strict";
import { address, byId, el, facts, get, image, listen } from "./page.js";

const chosen = new Set();

function place(found) {
  const isRun = found.kind === "run";
  const link = el("a", { href: address(isRun ? "/run" : "/gallery", { id: found.id }) }, found.name);
  if (!isRun) return el("li", {}, el("div", { class: "about" }, link, el("p", { class: "quiet" }, found.kind === "images" ? "a folder of images" : "an evaluation")));
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${found.name}` });
  box.checked = chosen.has(found.id);
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(found.id);
    else chosen.delete(found.id);
    byId("compare").hidden = chosen.size < 2;
  });
  const picture = found.preview ? image(found.id, found.preview, "", 144) : el("span", { class: "no-picture", "aria-hidden": "true" });
  // There may be hundreds of them, all of one size.
  if (found.preview) picture.loading = "lazy";
  const about = el("div", { class: "about" }, link, " ", el("span", { class: `state ${found.state}` }, found.state));
  about.append(el("p", { class: "quiet" }, [found.algorithm, ...facts(found)].filter(Boolean).join(" · ")));
  if (found.of) about.append(el("progress", { max: found.of, value: Math.min(found.step, found.of), "aria-label": `Updates of ${found.name}` }));
  return el("li", {}, box, picture, about);
}

function show(places) {
  const runs = places.filter((found) => found.kind === "run");
  const others = places.filter((found) => found.kind !== "run");
  const training = runs.filter((found) => found.state === "training").length;
  byId("about").textContent = runs.length
    ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}, ${training} training. Choose two or more to see them over one another.`
    : "No run is here yet; one appears as soon as it begins.";
  const focused = document.activeElement?.getAttribute("aria-label");
  byId("runs").replaceChildren(...runs.map(place));
  byId("folders").replaceChildren(...others.map(place));
  byId("others").hidden = others.length === 0;
  if (focused) [...document.querySelectorAll("[aria-label]")].find((element) => element.getAttribute("aria-label") === focused)?.focus();
}

byId("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  location.href = address("/run", { id: [...chosen] });
});
const load = async () => show(await get("/api/places"));
await load();
listen(() => "/events", { places: show }, load);
