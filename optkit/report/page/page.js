"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A chart names its colours as the style sheet does; data is left as it is.
  const themed = (node) => {
    if (typeof node === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(node);
      return name ? css(name[1]) : node;
    }
    if (Array.isArray(node)) return node.map(themed);
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, key === "data" ? value : themed(value)]));
  };

  const config = () => ({
    background: null,
    font: css("--font"),
    autosize: { type: "fit-x", contains: "padding" },
    padding: 2,
    view: { stroke: null },
    axis: {
      labelColor: css("--muted"), titleColor: css("--muted"), gridColor: css("--grid"), domainColor: css("--line"),
      tickColor: css("--line"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8,
    },
    axisY: { titleAnchor: "end" },
    legend: { labelColor: css("--ink"), titleColor: css("--muted"), labelFontSize: 12, symbolSize: 90, padding: 0, rowPadding: 4, offset: 10, layout: { top: { anchor: "start", direction: "vertical", margin: 6 } } },
    text: { color: css("--ink") },
  });

  const draw = async (div) => {
    drawn.get(div)?.finalize();
    if (div.dataset.minWidth) div.style.minWidth = `${div.dataset.minWidth}px`;
    const options = { renderer: "svg", actions: false, ast: true, config: config(), tooltip: { theme: "custom" } };
    drawn.set(div, await vegaEmbed(div, themed(specs[div.id]), options));
    div.style.minHeight = "";
    div.dataset.drawn = "";
  };

  // Charts are drawn when they are about to be seen: two hundred variants cost nothing until then.
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "600px" });

  const [first, ...others] = document.querySelectorAll(".chart");
  for (const div of others) {
    div.style.minHeight = `${div.dataset.height}px`;
    seen.observe(div);
  }
  if (first) draw(first);
  dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));
})();
