"use strict";
import { el, number, svg } from "./page.js";

// Drawn 360 units wide, as in reports, so that its letters can be read on a telephone.
const [WIDTH, HEIGHT] = [360, 210];
const [LEFT, RIGHT, TOP, BOTTOM] = [46, WIDTH - 10, 10, HEIGHT - 24];
const COLOURS = 6;
const STEP = 0, MEAN = 1, LOW = 2, HIGH = 3;

/** A range of values and where its ends are drawn. A line that never moves is drawn in the middle. */
function axis(values, at) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  if (low > high) return null;
  const margin = low !== high ? 0 : low === 0 ? 1 : Math.abs(low) / 2;
  [low, high] = [low - margin, high + margin];
  return { low, high, place: (value) => at[0] + ((value - low) / (high - low)) * (at[1] - at[0]) };
}

/** Round numbers within an axis. */
function ticks({ low, high }, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) found.push(tick);
  const decimals = Math.min(9, Math.max(0, -Math.floor(Math.log10(step))));
  const shown = (tick) => {
    if (Math.abs(tick) >= 1e6 || (decimals > 4 && Math.abs(tick) > step / 2)) return tick.toExponential(1).replaceAll("-", "−");
    return (Math.abs(tick) < step / 2 ? 0 : tick).toFixed(decimals > 4 ? 0 : decimals).replace("-", "−");
  };
  return found.map((tick) => [tick, shown(tick)]);
}

/** The line, broken where there is no value; a point without neighbours is a dot. */
function line(points, across, up) {
  let [path, broken] = ["", true];
  for (const point of points) {
    if (point[MEAN] === null) {
      broken = true;
      continue;
    }
    path += `${broken ? "M" : "L"}${across.place(point[STEP]).toFixed(1)} ${up.place(point[MEAN]).toFixed(1)}${broken ? "h0" : ""}`;
    broken = false;
  }
  return path;
}

/** What is around the line, in one piece between two gaps. */
function band(points, across, up) {
  const at = (point, side) => `${across.place(point[STEP]).toFixed(1)} ${up.place(point[side]).toFixed(1)}`;
  const pieces = [[]];
  for (const point of points) {
    if (point[LOW] === null || point[HIGH] === null) pieces.push([]);
    else pieces.at(-1).push(point);
  }
  const piece = (some) => `M${[...some.map((point) => at(point, HIGH)), ...some.toReversed().map((point) => at(point, LOW))].join("L")}Z`;
  return pieces.filter((some) => some.length > 1).map(piece).join("");
}

/** A chart that is drawn anew whenever its points change. */
export class Chart {
  constructor(plan, colourOf) {
    Object.assign(this, { plan, colourOf, waiting: false, at: null });
    this.title = el("h3", {}, plan.title);
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0" });
    this.drawing.setAttribute("aria-label", `Line chart of ${plan.title} over steps; arrow keys read it.`);
    this.reading = el("p", { class: "reading quiet", "aria-live": "polite" });
    this.legend = el("ul", { class: "legend" });
    const note = plan.note ? el("p", {}, plan.note) : null;
    this.element = el("figure", { class: "chart" }, this.title, this.drawing, el("figcaption", {}, this.reading, note, this.legend));
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.read(null));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    this.drawing.addEventListener("blur", () => this.read(null));
  }

  update(plan, marks) {
    Object.assign(this, { plan, marks });
    this.draw();
  }

  /** Adds a line of metrics; drawn with the next frame. */
  add(run, metrics) {
    let added = 0;
    for (const series of this.plan.series) {
      const value = metrics[series.metric];
      if (series.run !== run || value === undefined) continue;
      const shown = Number.isFinite(Number(value)) ? Number(value) : null;
      series.points.push([metrics.step, shown, shown, shown]);
      added += 1;
    }
    if (added && !this.waiting) {
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this.draw();
      });
    }
    return added;
  }

  draw() {
    const { series } = this.plan;
    const all = series.flatMap((one) => one.points);
    const across = axis(all.map((point) => point[STEP]), [LEFT, RIGHT]);
    const up = axis(all.flatMap((point) => [point[MEAN], point[LOW], point[HIGH]]), [BOTTOM, TOP]);
    this.across = across;
    this.drawing.replaceChildren();
    this.legend.replaceChildren(...series.map((one, place) => this.entry(one, place)));
    if (!across || !up) return;
    for (const [tick, shown] of ticks(up, 4)) {
      const y = up.place(tick).toFixed(1);
      this.drawing.append(svg("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y, y2: y }));
      this.drawing.append(svg("text", { x: LEFT - 5, y: Number(y) + 4, "text-anchor": "end" }, shown));
    }
    for (const [tick, shown] of ticks(across, 5)) {
      this.drawing.append(svg("text", { x: across.place(tick).toFixed(1), y: HEIGHT - 8, "text-anchor": "middle" }, shown));
    }
    for (const mark of (this.marks ?? []).filter((step) => step >= across.low && step <= across.high)) {
      const x = across.place(mark).toFixed(1);
      const upright = svg("line", { class: "mark", x1: x, x2: x, y1: TOP, y2: BOTTOM });
      upright.append(svg("title", {}, `the sentinel spoke at step ${mark}`));
      this.drawing.append(upright);
    }
    series.forEach((one, place) => {
      if (one.band !== "nothing") this.drawing.append(svg("path", { class: `band c${this.colour(one, place) % COLOURS}`, d: band(one.points, across, up) }));
    });
    series.forEach((one, place) => this.drawing.append(svg("path", { class: this.look(one, place), d: line(one.points, across, up) })));
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: BOTTOM, visibility: "hidden" });
    this.drawing.append(this.cursor);
    if (this.at !== null) this.read(this.at);
  }

  colour(series, place) {
    return this.colourOf ? this.colourOf(series) : place;
  }

  /** Colours tell runs apart if there are several, and dashes the lines of one run. */
  look(series, place) {
    const colour = this.colour(series, place);
    const dash = this.colourOf ? this.plan.series.filter((other) => other.run === series.run).indexOf(series) : Math.floor(colour / COLOURS);
    return `line c${colour % COLOURS}${dash % 3 ? ` d${dash % 3}` : ""}`;
  }

  entry(series, place) {
    const swatch = svg("svg", { class: "swatch", viewBox: "0 0 24 8", "aria-hidden": "true" });
    swatch.append(svg("path", { class: this.look(series, place), d: "M0 4H24" }));
    const finite = series.points.filter((point) => point[MEAN] !== null);
    const course = finite.length ? `${number(finite[0][MEAN])} → ${number(finite.at(-1)[MEAN])}` : "no finite value";
    return el("li", {}, swatch, el("span", { class: "name" }, series.shown ?? series.name), el("span", { class: "number" }, course));
  }

  point(event) {
    if (!this.across) return;
    const { left, width } = this.drawing.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * WIDTH;
    this.read(this.across.low + ((x - LEFT) / (RIGHT - LEFT)) * (this.across.high - this.across.low));
  }

  key(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!direction || !this.across) return;
    event.preventDefault();
    const { low, high } = this.across;
    const at = this.at ?? (direction > 0 ? low : high);
    this.read(Math.min(high, Math.max(low, Number.isFinite(direction) ? at + (direction * (high - low)) / 50 : direction)));
  }

  /** Tells the values nearest to a step. */
  read(step) {
    this.at = step;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step === null) {
      this.reading.textContent = "";
      return;
    }
    const told = [];
    let nearest = null;
    for (const series of this.plan.series) {
      const finite = series.points.filter((point) => point[MEAN] !== null);
      if (!finite.length) continue;
      const point = finite.reduce((best, next) => (Math.abs(next[STEP] - step) < Math.abs(best[STEP] - step) ? next : best));
      nearest ??= point[STEP];
      const around = series.band !== "nothing" && point[LOW] !== point[HIGH] ? ` [${number(point[LOW])}, ${number(point[HIGH])}]` : "";
      told.push(`${series.shown ?? series.name} ${number(point[MEAN])}${around}`);
    }
    if (nearest === null) return;
    const x = this.across.place(nearest).toFixed(1);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.reading.textContent = `step ${Math.round(nearest)}: ${told.join("; ")}`;
  }
}
