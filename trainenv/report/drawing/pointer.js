/* Reads out the step under the pointer. Everything can be read without it. */
(() => {
  const data = JSON.parse(document.getElementById("steps").textContent);
  if (!data.step || !data.step.length) return;
  const tip = document.createElement("output");
  tip.className = "pointer";
  document.querySelector("main").append(tip);
  const nearest = (step) => {
    let low = 0, high = data.step.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (data.step[middle] <= step) low = middle; else high = middle;
    }
    return step - data.step[low] < data.step[high] - step ? low : high;
  };
  for (const svg of document.querySelectorAll("svg.steps")) {
    const { last, left, right, width } = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, +v]));
    const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
    hair.setAttribute("class", "hair");
    hair.setAttribute("y1", 28);
    hair.setAttribute("y2", svg.viewBox.baseVal.height - 36);
    svg.append(hair);
    const hide = () => { tip.style.display = "none"; hair.style.display = "none"; };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * width;
      if (x < left || x > right) return hide();
      const place = nearest((x - left) / (right - left) * last);
      const at = left + data.step[place] / last * (right - left);
      hair.setAttribute("x1", at);
      hair.setAttribute("x2", at);
      hair.style.display = "block";
      const said = Object.keys(data).map((name) => `${name} ${data[name][place] ?? "–"}`);
      tip.textContent = said.join("  ·  ");
      tip.style.display = "block";
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
      tip.style.top = `${event.clientY + 18}px`;
    });
    svg.addEventListener("pointerleave", hide);
    hide();
  }
})();
