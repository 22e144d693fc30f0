"use strict";
// What every page uses. Text gets into a page as text alone: nothing here makes markup of a string.

/** An element: `el("p", { class: "quiet" }, "text", child)`. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The same for drawings. */
export function svg(name, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

export const byId = (id) => document.getElementById(id);

/** An address with a query; a list repeats its name, and what is null is left out. */
export function address(path, query = {}) {
  const pairs = Object.entries(query).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return known.length ? `${path}?${new URLSearchParams(known)}` : path;
}

export async function get(path, query) {
  const response = await fetch(address(path, query));
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

/** Writes, with this server's token, which pages of other sites cannot read. */
export async function post(path, query, body) {
  const token = document.querySelector("meta[name=token]").content;
  const headers = { "x-token": token, "content-type": "application/json" };
  const response = await fetch(address(path, query), { method: "POST", headers, body: body && JSON.stringify(body) });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

/** An image of a place; small ones are shown as squares, not smoothed. */
export function image(id, path, alt, side) {
  const picture = el("img", { alt, decoding: "async", src: address("/image", { id, path, side }) });
  picture.addEventListener("load", () => picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) <= 128));
  return picture;
}

/** A number with four digits. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replaceAll("-", "−");
  const digits = size === 0 ? 0 : Math.min(4, Math.max(0, 3 - Math.floor(Math.log10(size))));
  return value.toFixed(digits).replace("-", "−");
}

export function duration(seconds) {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.round((seconds % 3600) / 60)];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return seconds >= 90 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds)} s`;
}

/** What is to be told of how a run is, as short texts. */
export function facts(run) {
  const told = [];
  if (run.of) told.push(`update ${run.step} of ${run.of}`);
  else told.push(`update ${run.step}`);
  if (run.reward !== null && run.reward !== undefined) told.push(`${run.trained_reward ?? "reward"} ${number(run.reward)}`);
  if (run.seconds_left !== null && run.seconds_left !== undefined) told.push(`${duration(run.seconds_left)} left`);
  if (run.images_per_second) told.push(`${number(run.images_per_second)} images/s`);
  if (run.memory) told.push(`${(run.memory / 2 ** 30).toFixed(2)} GB`);
  if (run.silent_for) told.push(`not heard of for ${duration(run.silent_for)}: killed, or its machine is out of reach`);
  return told;
}

/** Copies, and says so on the button. */
export function copyButton(label, text) {
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without leave for the clipboard, as on another machine's address: select it instead.
      const area = el("textarea", { readonly: true }, text);
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

/** Listens to events, and again when the server was away; `again` is called when it is back. */
export function listen(where, handlers, again) {
  let source;
  let lost = false;
  const open = () => {
    source = new EventSource(where());
    for (const [name, handle] of Object.entries(handlers)) source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      source.close();
      lost = true;
      setTimeout(retry, 2000);
    });
  };
  const retry = async () => {
    try {
      if (lost) await again();
      lost = false;
      open();
    } catch {
      setTimeout(retry, 2000);
    }
  };
  open();
  addEventListener("pagehide", () => source.close());
}
