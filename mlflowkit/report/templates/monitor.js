/* The heat map of a monitor: says what a cell is under the pointer, and opens the cell that is clicked.
   Without this script a row leads to its last window. */
"use strict";
(() => {
  const cellAt = event => {
    const row = event.target.closest("a[data-heat]");
    const drawn = row && row.querySelector(".cells");
    if (!drawn) return null;
    const box = drawn.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width;
    const starts = row.closest("[data-starts]").dataset.starts.split(",");
    if (!(place >= 0 && place < 1) || event.clientY < box.top || event.clientY > box.bottom) return null;
    const index = Math.floor(place * starts.length);
    return {row, start: starts[index], value: row.dataset.heat.split(",")[index]};
  };
  const when = seconds => new Date(1000 * Number(seconds)).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");

  document.addEventListener("pointermove", event => {
    const readout = document.getElementById("readout");
    if (!readout) return;
    const cell = cellAt(event);
    if (!cell) return;
    const name = cell.row.querySelector(".name").textContent;
    const value = cell.value ? `${cell.value} of allowed ${cell.row.dataset.margin}` : "not judged";
    readout.textContent = `${name} · window from ${when(cell.start)} · ${value}`;
  });

  document.addEventListener("click", event => {
    const cell = cellAt(event);
    if (!cell || event.detail === 0 || event.metaKey || event.ctrlKey || event.button !== 0) return;
    const address = new URL(cell.row.href);
    address.searchParams.set("window", cell.start);
    event.preventDefault();
    location.assign(address);
  });
})();
