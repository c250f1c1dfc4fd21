"use strict";
document.documentElement.classList.add("scripted");

/* Charts: drawn in the colours of the page, again when those change, and in light ones at paper's width for print. */
(() => {
  const dark = JSON.parse(document.getElementById("dark").textContent);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  // On a touch screen a drag has to scroll the page.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  const PAPER_WIDTH = 680;
  const places = [...document.querySelectorAll(".chart")];
  function draw(isDark, width) {
    for (const place of places) {
      const recoloured = (_, value) => (isDark && Object.hasOwn(dark, value) ? dark[value] : value);
      const figure = JSON.parse(place.nextElementSibling.textContent, recoloured);
      Object.assign(figure.layout, { dragmode, width, autosize: width === undefined });
      Plotly.react(place, figure.data, figure.layout, { responsive: width === undefined, displayModeBar: false });
    }
  }
  const onScreen = () => draw(scheme.matches);
  onScreen();
  scheme.addEventListener("change", onScreen);
  addEventListener("beforeprint", () => draw(false, PAPER_WIDTH));
  addEventListener("afterprint", onScreen);
})();

/* The result table: sorted by its headings, which become buttons, and filtered. */
(() => {
  const table = document.getElementById("result-table");
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];

  function compare(a, b, column) {
    const [x, y] = [a.cells[column], b.cells[column]];
    if (x.dataset.value === undefined) return x.textContent.localeCompare(y.textContent, "en", { numeric: true });
    return Number(x.dataset.value) - Number(y.dataset.value);
  }
  const isEmpty = (row, column) => row.cells[column].dataset.value === "";

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      // What has no value stands last in both directions.
      rows.sort((a, b) => isEmpty(a, column) - isEmpty(b, column) || sign * compare(a, b, column));
      body.append(...rows);
    });
  });

  const form = document.querySelector(".filters");
  function filter() {
    const [model, kind, text] = ["model", "kind", "text"].map((name) => form.elements[name].value);
    for (const row of rows) {
      row.hidden = Boolean(model && row.dataset.model !== model) || Boolean(kind && row.dataset.kind !== kind) ||
        !row.textContent.toLowerCase().includes(text.trim().toLowerCase());
    }
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  }
  // Not every way to choose from a list says both.
  form.addEventListener("input", filter);
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
