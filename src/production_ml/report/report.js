// Unpacks plotly.js and draws the charts in the colours of the page, light or dark.
"use strict";

const root = document.documentElement;
const byTouch = matchMedia("(pointer: coarse)").matches;
window.addEventListener("error", (event) => { root.dataset.error = event.message; });
window.addEventListener("unhandledrejection", (event) => { root.dataset.error = String(event.reason); });

async function unpack(element) {
  const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function themed(layout) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
  // A finger that scrolls the page must not drag the chart.
  const fixed = byTouch ? { fixedrange: true } : {};
  return {
    ...layout,
    autosize: true,
    dragmode: byTouch ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--muted") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--text") },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } },
    xaxis: { ...axis, ...fixed, ...layout.xaxis },
    yaxis: { ...axis, ...fixed, ...layout.yaxis },
  };
}

async function draw() {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const places = [...document.querySelectorAll(".chart")];
  const script = document.createElement("script");
  script.textContent = await unpack(document.getElementById("plotly"));
  document.head.append(script);
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: byTouch ? false : "hover",
    // Named one by one: plotly's own list has a button that sends the chart, and its data, to plotly's cloud.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const redraw = async () => {
    for (const place of places) {
      const { data, layout } = charts[Number(place.dataset.chart)];
      await Plotly.react(place, data, themed(layout), config);
      // Let the page scroll and answer between two charts.
      await new Promise((resume) => setTimeout(resume));
    }
  };
  await redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return places.length;
}

// Whoever waits for the charts (a test, a printer) awaits this.
window.chartsDrawn = draw().then(
  (count) => { root.dataset.charts = String(count); return count; },
  (problem) => {
    root.dataset.error = String(problem);
    for (const place of document.querySelectorAll(".chart")) {
      place.textContent = "The charts cannot be drawn in this browser (" + problem + "). The tables are complete.";
    }
    return 0;
  },
);
