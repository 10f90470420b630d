"use strict";
(function () {
  const first = document.querySelector(".sheet");
  if (!first) return;
  const home = first.parentElement;
  const sheets = [...home.querySelectorAll(".sheet")];
  const bar = document.createElement("p");
  bar.className = "tools";
  const filter = document.createElement("input");
  filter.type = "search";
  filter.placeholder = "only prompts and answers with ...";
  filter.setAttribute("aria-label", "Show only prompts and answers that hold this text");
  const order = document.createElement("select");
  order.setAttribute("aria-label", "Order of the prompts");
  for (const name of ["as chosen", "furthest apart first", "closest first", "by prompt"]) order.add(new Option(name));
  const count = document.createElement("span");
  count.setAttribute("role", "status");
  bar.append(filter, " ", order, " ", count);
  first.before(bar);
  const apart = (sheet) => Number(sheet.dataset.apart);
  const prompt = (sheet) => sheet.querySelector(".asked .text").textContent;
  const orders = [() => 0, (a, b) => apart(b) - apart(a), (a, b) => apart(a) - apart(b),
    (a, b) => prompt(a).localeCompare(prompt(b))];
  function show() {
    const wanted = filter.value.toLowerCase();
    let seen = 0;
    for (const sheet of [...sheets].sort(orders[order.selectedIndex])) {
      sheet.hidden = !sheet.textContent.toLowerCase().includes(wanted);
      seen += sheet.hidden ? 0 : 1;
      home.append(sheet);
    }
    count.textContent = seen + " of " + sheets.length;
  }
  filter.addEventListener("input", show);
  order.addEventListener("change", show);
  show();
})();
