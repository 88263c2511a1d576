"use strict";
// What a test asks of a page; the answers go to the page that shows it in a frame.
(async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const channels = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = channels(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const style = getComputedStyle(element);
    if (!own || !element.getClientRects().length || ["SCRIPT", "title", "desc"].includes(element.tagName)) continue;
    const drawn = channels(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [low, high] = [luminance(drawn), luminance(behind(element))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faint.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }

  const table = document.getElementById("artifacts");
  const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const column = headings.indexOf("ms");
  const figures = () => [...table.tBodies[0].rows].map((row) => row.cells[column].querySelector("data")?.value ?? null);
  const orders = [];
  for (let press = 0; press < 2; press++) {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    orders.push([table.tHead.rows[0].cells[column].getAttribute("aria-sort"), figures()]);
  }

  const filters = {};
  for (const form of document.querySelectorAll("form.filters")) {
    const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
    const names = () => rows.filter((row) => row.getClientRects().length).map((row) => row.cells[0].textContent.trim());
    const [find, choose] = [form.querySelector("input"), form.querySelector("select")];
    const set = (field, value) => { field.value = value; field.dispatchEvent(new Event("input", { bubbles: true })); };
    const all = names();
    set(choose, "float");
    const float = names();
    set(choose, "");
    set(find, "NET.0");
    filters[form.dataset.table] = { all, float, found: names(), said: form.querySelector("output").textContent };
    set(find, "");
  }

  const copies = [];
  for (const button of document.querySelectorAll("button.copy")) {
    if (button.closest("details:not([open])")) continue;
    button.click();
    await pause(200);
    copies.push([button.textContent, getSelection().toString(), button.parentElement.querySelector("code").textContent]);
  }

  const handed = []; // a browser without a window has no clipboard that a page may write to
  const clipboard = { writeText: async (text) => { handed.push(text); } };
  Object.defineProperty(navigator, "clipboard", { value: clipboard });
  const first = document.querySelector("button.copy");
  first?.click();
  await pause(200);
  const copied = first && [first.textContent, handed, first.parentElement.querySelector("code").textContent];

  const root = document.documentElement;
  const answers = {
    title: document.title, width: innerWidth, content: root.scrollWidth, faint, orders, filters, copies, copied,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    figures: [...document.querySelectorAll("data")].map((each) => each.value),
    wide: [...document.querySelectorAll("table")].filter((each) => !each.closest(".scroll")).length,
  };
  parent.postMessage(answers, "*");
})();
