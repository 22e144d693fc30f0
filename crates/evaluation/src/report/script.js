"use strict";
// Without this script pairs of images stand side by side. With it, a slider wipes from one to the other.
for (const gallery of document.querySelectorAll(".wipes")) {
  const pairs = [...gallery.querySelectorAll(".pair")].filter((pair) => pair.querySelectorAll("img").length === 2);
  if (pairs.length === 0) continue;
  for (const pair of pairs) {
    const images = pair.querySelector(".images");
    const [before, after] = [...pair.querySelectorAll("figcaption")].map((caption) => caption.textContent);
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: "0", max: "100", value: "50" });
    slider.setAttribute("aria-label", `Wipe from ${after} to ${before}: ${pair.querySelector(".prompt").textContent}`);
    const show = () => {
      images.style.setProperty("--cut", `${slider.value}%`);
      slider.setAttribute("aria-valuetext", `${slider.value} % ${before}`);
    };
    const follow = (event) => {
      const { left, width } = images.getBoundingClientRect();
      slider.value = String(Math.round((100 * (event.clientX - left)) / width));
      show();
    };
    slider.addEventListener("input", show);
    images.addEventListener("pointerdown", (event) => {
      if (!gallery.classList.contains("wiping")) return;
      images.setPointerCapture(event.pointerId);
      follow(event);
    });
    images.addEventListener("pointermove", (event) => {
      if (images.hasPointerCapture(event.pointerId)) follow(event);
    });
    for (const image of images.querySelectorAll("img")) image.draggable = false;
    images.after(slider);
    pair.classList.add("wipe");
    show();
  }
  const button = document.createElement("button");
  button.type = "button";
  const turn = (wiping) => {
    gallery.classList.toggle("wiping", wiping);
    button.textContent = wiping ? "Show side by side" : "Show with a slider";
  };
  button.addEventListener("click", () => turn(!gallery.classList.contains("wiping")));
  gallery.before(button);
  turn(true);
}
