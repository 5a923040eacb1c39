/* Fills the page with what the server sends. Text goes into the page as text, never as markup. */
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const made = (name, text, class_) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (class_) element.className = class_;
    return element;
  };
  const whole = (value) => Number(value).toLocaleString("en-US");

  const facts = (found) => {
    document.querySelector("main").dataset.state = found.state;
    document.title = `${whole(found.step)}${found.budget ? ` of ${whole(found.budget)}` : ""} · ${found.name}`;
    at("name").textContent = found.name;
    at("verdict").textContent = found.verdict;
    at("notes").replaceChildren(...found.notes.map((note) => made("li", note)));
    at("tiles").replaceChildren(...found.tiles.map(([name, value, note]) => {
      const tile = made("div"), number = made("dd", value);
      number.append(made("small", note));
      tile.append(made("dt", name), number);
      return tile;
    }));
    ledger(found.ledger);
  };

  const ledger = (rows) => {
    if (!rows.length) return at("ledger").replaceChildren(made("p", "Not known yet.", "quiet"));
    const bar = made("div", undefined, "bar"), table = made("table", undefined, "ledger"), body = made("tbody");
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", "Compute by purpose");
    for (const row of rows) {
      if (row.part) {
        const piece = made("i", undefined, `p-${row.purpose}`);
        piece.style.flexGrow = row.part;
        piece.title = `${row.name}: ${row.share}`;
        bar.append(piece);
      }
      const line = made("tr"), head = made("th", row.name);
      head.scope = "row";
      head.prepend(made("i", undefined, `swatch p-${row.purpose}`));
      line.append(head, made("td", row.share, "n"), made("td", row.flops, "n"));
      body.append(line);
    }
    table.append(body);
    const box = made("div", undefined, "box");
    box.append(table);
    at("ledger").replaceChildren(bar, box);
  };

  const entry = (step, title, text, badge) => {
    const line = made("li"), words = made("div");
    if (badge) words.append(made("span", badge, badge === "accepted" ? "badge on" : "badge"));
    words.append(made("span", title));
    if (text) words.append(made("small", text));
    line.append(made("span", whole(step), "when"), words);
    return line;
  };
  const story = (found) => {
    at("decisions-section").hidden = !found.decisions.length;
    at("decisions").replaceChildren(...found.decisions.map((one) =>
      entry(one.step, `Decision ${one.number}: ${one.title}`, one.text, one.accepted ? "accepted" : "unchanged")));
    at("events-section").hidden = !found.events.length;
    at("events").replaceChildren(...found.events.map(([step, , words]) => entry(step, words)));
    Charts.tell(found);
  };

  let asking = false, again = false;
  /* Asks for the stretch that is zoomed in, in finer steps. */
  const stretch = async () => {
    const range = Charts.zoomed();
    if (!range) return;
    if (asking) { again = true; return; }
    asking = true;
    const address = new URL("range", location.href);
    address.search = location.search;
    address.searchParams.set("from", Math.floor(range[0]));
    address.searchParams.set("to", Math.ceil(range[1]));
    try {
      const answer = await fetch(address);
      if (answer.ok && Charts.zoomed() === range) Charts.show(await answer.json());
    } catch { /* the next change asks again */ }
    asking = false;
    if (again) { again = false; stretch(); }
  };
  let latest = null;
  Charts.onZoom((range) => { if (range) stretch(); else if (latest) Charts.show(latest); });
  const curves = (found) => {
    latest = found;
    if (Charts.zoomed()) stretch(); else Charts.show(found);
    document.documentElement.dataset.drawn ||= Math.round(performance.now());
  };

  const source = new EventSource(`events${location.search}`);
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("facts", facts);
  on("curves", curves);
  on("story", story);
  source.addEventListener("open", () => { at("link").hidden = true; });
  source.addEventListener("error", () => { at("link").hidden = false; });
})();
