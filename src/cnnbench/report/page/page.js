"use strict";
(function () {
  const root = document.documentElement;
  root.classList.add("js");

  // Light or dark: the system's choice until the reader's. Charts take their colours from the style, as all else does.
  const theme = document.getElementById("theme");
  theme.addEventListener("change", () => {
    if (theme.value) root.dataset.theme = theme.value;
    else delete root.dataset.theme;
  });

  // Charts, each when it is about to be seen: Vega's expressions are interpreted, so that nothing need be compiled.
  const data = document.getElementById("charts");
  const specs = data ? JSON.parse(data.textContent) : {};
  const views = new Map();
  let hiddenRuns = new Set();
  const all = Object.fromEntries(
    Object.entries(specs).map(([name, spec]) => [name, (spec.datasets && spec.datasets.values) || valuesOf(spec)])
  );

  function valuesOf(spec) {
    let found = null;
    JSON.stringify(spec, (key, value) => {
      if (value && value.name === "values" && Array.isArray(value.values)) found = value.values;
      return value;
    });
    return found || [];
  }

  async function draw(place) {
    const name = place.dataset.chart;
    if (views.has(name)) return;
    views.set(name, null);
    const spec = JSON.parse(JSON.stringify(specs[name]));
    const width = place.clientWidth; // what does not fit is cut: the tooltip and the table have it whole
    const longest = Math.max(0, ...all[name].map((value) => String(value.series || value.roof || "").length));
    spec.config.legend.columns = Math.max(1, Math.min(8, Math.floor((width - 60) / (longest * 6.2 + 36))));
    spec.config.legend.labelLimit = Math.max(120, width / spec.config.legend.columns - 60);
    spec.config.axis.labelLimit = Math.max(90, 0.3 * width);
    try {
      const inside = place.appendChild(document.createElement("div")); // Vega labels what it is put into
      const made = await window.vegaEmbed(inside, spec, {
        mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, hover: false,
        tooltip: { disableDefaultStyle: true },
      });
      place.querySelector("svg").setAttribute("aria-hidden", "true");
      made.view.logLevel(1); // errors alone: Vega warns of layers that the filters leave empty
      views.set(name, made.view);
      if (hiddenRuns.size) await show(name);
    } catch (error) {
      place.classList.add("failed");
      place.textContent = "This chart could not be drawn: " + error.message;
      console.error(error);
    }
  }

  async function show(name) {
    const view = views.get(name);
    if (!view || !all[name].some((value) => "run" in value)) return;
    const left = all[name].filter((value) => !hiddenRuns.has(value.run)).map((value) => ({ ...value }));
    document.getElementById(`chart-${name}`).classList.toggle("none", left.length === 0);
    if (left.length) await view.data("values", left).runAsync();
  }

  const places = [...document.querySelectorAll(".chart")];
  const watch = new IntersectionObserver((seen) => {
    for (const one of seen) if (one.isIntersecting) { watch.unobserve(one.target); draw(one.target); }
  }, { rootMargin: "600px" });
  places.forEach((place) => watch.observe(place));
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 200));
  const drawRest = () => { // so that all are there when the page is printed
    const next = places.find((place) => !views.has(place.dataset.chart));
    if (next) draw(next).then(() => idle(drawRest));
  };
  window.addEventListener("load", () => idle(drawRest));

  // The filters: a row stays that has all words and a verdict that is ticked; charts show the runs of these rows.
  const filter = document.getElementById("filter");
  const boxes = [...document.querySelectorAll("input[name=verdict]")];
  const rows = [...document.querySelectorAll("#runs tbody tr")].map((row) => [row, row.textContent.toLowerCase()]);
  const shown = document.getElementById("shown");
  function apply() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdicts = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    hiddenRuns = new Set();
    for (const [row, text] of rows) {
      row.hidden = !(verdicts.has(row.dataset.verdict) && words.every((word) => text.includes(word)));
      if (row.hidden) hiddenRuns.add(Number(row.dataset.run));
    }
    shown.textContent = `${rows.length - hiddenRuns.size} of ${rows.length} runs`;
    for (const name of views.keys()) show(name);
  }
  filter.addEventListener("input", apply);
  boxes.forEach((box) => box.addEventListener("change", apply));
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  if (filter.value || boxes.some((box) => !box.checked)) apply(); // what a browser filled in again

  // On a phone a row is a card (see the style): cells say what they are of, and are still a table's for a screen reader.
  const heads = [...document.querySelectorAll("#runs thead th")].map((head) => head.textContent);
  document.getElementById("runs").setAttribute("role", "table");
  for (const [row] of rows) {
    row.setAttribute("role", "row");
    [...row.cells].forEach((cell, at) => {
      cell.setAttribute("role", at ? "cell" : "rowheader");
      cell.dataset.label = heads[at];
      if (!cell.textContent.trim()) cell.classList.add("empty");
    });
  }

  // What a badge beside a number means stands in its run's row; here it is said where the pointer is, too.
  const reasons = new Map(rows.map(([row]) => {
    const reason = row.querySelector(".reason");
    return [row.dataset.run, reason ? reason.textContent.replace(/^why/, "") : row.dataset.verdict];
  }));
  for (const badge of document.querySelectorAll("[data-of]")) badge.title = reasons.get(badge.dataset.of) || "";

  // A link to a run shows it, and what is closed is open on paper.
  function reveal() {
    const row = document.getElementById(location.hash.slice(1));
    if (row && row.tagName === "DETAILS") row.open = true;
    if (row && row.hidden) { filter.value = ""; boxes.forEach((box) => { box.checked = true; }); apply(); row.scrollIntoView(); }
  }
  window.addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(.numbers)")];
    closed.forEach((one) => { one.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
  window.cnnbench = { views, drawAll: () => Promise.all(places.map(draw)) };
})();
