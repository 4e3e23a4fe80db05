// What the page does beyond HTML: says whether it is live, and turns the static curve into one that can be read off.
// Fragments are swapped by htmx from the event stream; without script the page stays as the server wrote it.
"use strict";

(() => {
  const words = { live: "Live", lost: "Connection lost, trying again" };

  function tell(state) {
    const place = document.getElementById("link-state");
    if (!place || place.dataset.state === state) return;
    place.dataset.state = state;
    place.querySelector(".words").textContent = words[state];
  }

  document.addEventListener("htmx:sseOpen", () => tell("live"));
  document.addEventListener("htmx:sseError", () => tell("lost"));

  let plot = null;
  let drawing = 0;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function options(figure, metric) {
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    return {
      width: figure.clientWidth,
      height: 260,
      scales: { x: { time: false } },
      series: [
        { label: "Round" },
        { label: metric, stroke: colour("--accent"), width: 2.5, points: { size: 7, fill: colour("--accent") },
          value: (_, value) => (value == null ? "—" : Number(value).toPrecision(4)) },
      ],
      axes: [
        { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
        { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => Number(tick.toPrecision(4)).toString()) },
      ],
    };
  }

  async function draw() {
    const figure = document.querySelector("figure.chart[data-source]");
    const turn = ++drawing;
    if (!figure || typeof uPlot === "undefined") return;
    const metric = figure.dataset.metric;
    const answer = await fetch(figure.dataset.source, { headers: { accept: "application/json" } }).catch(() => null);
    if (!answer || !answer.ok) return; // the static curve stays
    const rounds = (await answer.json()).filter((row) => row.state === "finished" && metric in row.metrics);
    if (turn !== drawing || rounds.length < 2 || !figure.isConnected) return;
    if (plot) plot.destroy();
    const data = [rounds.map((row) => row.number), rounds.map((row) => row.metrics[metric])];
    const label = figure.querySelector("svg")?.getAttribute("aria-label") || figure.getAttribute("aria-label");
    figure.replaceChildren();
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", label || metric);
    plot = new uPlot(options(figure, metric), data, figure);
  }

  document.addEventListener("DOMContentLoaded", draw);
  document.addEventListener("htmx:sseMessage", (event) => {
    if (event.target && event.target.id === "chart") draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let pause;
  addEventListener("resize", () => {
    clearTimeout(pause);
    pause = setTimeout(draw, 150);
  });
})();
