"use strict";
// Everything can be read without this: it adds sorting, tooltips and links between rows and marks.

function number(cell) {
  const found = cell.textContent.replaceAll(",", "").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/);
  return found ? Number(found[0]) : NaN;
}

function compare(a, b, isNumber) {
  if (!isNumber) return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  return number(a) - number(b);
}

function missing(cell, isNumber) {
  return isNumber ? Number.isNaN(number(cell)) : cell.textContent.trim() === "-";
}

function sort(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  const isNumber = head.classList.contains("number");
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    const gaps = missing(x, isNumber) - missing(y, isNumber); // what is not there stays below
    return gaps || (missing(x, isNumber) ? 0 : (down ? -1 : 1) * compare(x, y, isNumber));
  });
  for (const row of rows) row.classList.remove("end"); // groups are no longer together
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head, column));
  });
}

const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
document.body.append(tip);

function mark(row, on) {
  if (!row) return;
  for (const part of document.querySelectorAll(`[data-row="${CSS.escape(row)}"]`)) {
    part.classList.toggle("on", on);
  }
}

function show(part) {
  tip.textContent = part.getAttribute("aria-label");
  tip.hidden = false;
  const box = part.getBoundingClientRect();
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = Math.max(8, Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, room));
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : box.bottom + 8) + scrollY}px`;
  mark(part.dataset.row, true);
}

function hide(part) {
  tip.hidden = true;
  mark(part.dataset.row, false);
}

for (const title of document.querySelectorAll("svg.plot title")) {
  title.parentNode.setAttribute("aria-label", title.textContent);
  title.remove(); // else the browser shows it as well
}

for (const part of document.querySelectorAll("svg.plot [data-tip]")) {
  part.addEventListener("pointerenter", () => show(part));
  part.addEventListener("pointerleave", () => hide(part));
  part.addEventListener("focus", () => show(part));
  part.addEventListener("blur", () => hide(part));
}

for (const row of document.querySelectorAll("tr[data-row]")) {
  row.addEventListener("pointerenter", () => mark(row.dataset.row, true));
  row.addEventListener("pointerleave", () => mark(row.dataset.row, false));
}

// One stop of the tab key for each plot; the arrow keys walk from mark to mark.
for (const plot of document.querySelectorAll("svg.plot")) {
  const marks = [...plot.querySelectorAll("[data-tip]")];
  marks.forEach((part, place) => {
    part.setAttribute("tabindex", place ? "-1" : "0");
    part.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide(part);
      if (!step) return;
      event.preventDefault();
      const next = marks[(place + step + marks.length) % marks.length];
      part.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
