"use strict";

function say(text) {
  document.getElementById("said").textContent = text;
}

// What a cell is sorted by: its number where it has one, else its text.
function keyOf(row, column) {
  const cell = row.cells[column];
  const number = cell.querySelector("data");
  const text = cell.textContent.trim();
  const value = number ? Number(number.value) : parseFloat(text.replace("−", "-"));
  return cell.classList.contains("text") || cell.tagName === "TH" ? text : value;
}

function compare(a, b) {
  const missing = [a, b].map((key) => (typeof key === "number" ? Number.isNaN(key) : key === ""));
  if (missing[0] || missing[1]) return { missing: missing[0] - missing[1] };
  return { order: typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }) };
}

function sort(table, column, button) {
  const header = button.closest("th");
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
  rows.sort(([a], [b]) => {
    const { missing, order } = compare(a, b); // what is missing comes last, whichever way it is sorted
    return missing !== undefined ? missing : down ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
  say(`Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    if (!header.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(table, column, button));
  });
}

for (const form of document.querySelectorAll("form.filters")) {
  const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
  const [find, choose, count] = ["input", "select", "output"].map((tag) => form.querySelector(tag));
  const apply = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!choose.value || row.dataset.state === choose.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

async function copy(code, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    copied = document.execCommand("copy"); // where the page has no right to the clipboard
  }
  button.textContent = copied ? "Copied" : "Press Ctrl+C";
  say(copied ? "Copied to the clipboard" : "Selected: press Ctrl+C to copy");
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(button.parentElement.querySelector("code"), button));
}

addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
