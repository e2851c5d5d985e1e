"use strict";

// Charts: drawn in the colours of the reader's scheme, and again when that changes.
(function () {
  const holder = document.getElementById("chart-data");
  if (!holder) { document.body.dataset.charts = "0"; return; }
  const data = JSON.parse(holder.textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let views = [];

  async function draw() {
    views.forEach((view) => view.finalize());
    views = [];
    const config = data.themes[dark.matches ? "dark" : "light"];
    for (const chart of data.charts) {
      const spec = { ...chart.spec };
      if (chart.rows !== undefined) { // Vega writes into the rows it is given
        const copies = (rows) => rows.map((row) => ({ ...row }));
        const rows = data.rows[chart.rows];
        spec.datasets = { rows: copies(rows), front: copies(chart.front.map((index) => rows[index])) };
      }
      const options = { actions: false, renderer: "svg", config, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
      views.push(await window.vegaEmbed("#" + chart.id, spec, options));
    }
    document.body.dataset.charts = String(views.length);
    document.body.dataset.scheme = dark.matches ? "dark" : "light";
    document.body.dataset.width = String(document.documentElement.clientWidth);
    document.body.dataset.scrollWidth = String(document.documentElement.scrollWidth);
  }

  let last = draw();
  // A chart in a closed part has no width; the charts take theirs again when the window's changes.
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => {
    if (part.open && part.querySelector(".chart")) { window.dispatchEvent(new Event("resize")); }
  }));
  dark.addEventListener("change", () => { last = last.then(draw); });
})();

// The table: a click on a heading sorts, a second one turns it round; rows without a value stay at the end.
(function () {
  const table = document.getElementById("figures");
  if (!table) { return; }
  const body = table.tBodies[0];
  const headings = Array.from(table.tHead.rows[0].cells);

  function key(row, index, numeric) {
    const cell = row.cells[index];
    if (!numeric) { return cell.textContent.trim(); }
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  }

  function sort(index) {
    const heading = headings[index];
    const numeric = !heading.classList.contains("t");
    const down = heading.getAttribute("aria-sort") === "ascending";
    const order = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    const rows = Array.from(body.rows).map((row) => [key(row, index, numeric), row]);
    rows.sort(([a], [b]) => {
      const empty = [a, b].map((value) => value === null || value === "" || value === "–");
      if (empty[0] || empty[1]) { return empty[0] - empty[1]; }
      return down ? order(b, a) : order(a, b);
    });
    body.append(...rows.map(([, row]) => row));
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  headings.forEach((heading, index) => heading.querySelector("button").addEventListener("click", () => sort(index)));

  const filter = document.getElementById("filter");
  if (!filter) { return; }
  const found = document.getElementById("found");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    found.textContent = words.length ? `${shown} of ${body.rows.length}` : "";
  });
})();
