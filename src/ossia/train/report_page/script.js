// Tells the values nearest to the pointer, under the chart.
for (const figure of document.querySelectorAll("figure")) {
  const lines = [...figure.querySelectorAll("polyline[data-told]")].map((line) => ({
    label: line.dataset.label,
    points: [...line.points].map((point) => point.x),
    told: line.dataset.told.split(" ").map((pair) => pair.split(":")),
  }));
  const svg = figure.querySelector("svg"), output = figure.querySelector("output");
  if (!lines.length) continue;
  svg.addEventListener("pointermove", (event) => {
    const x = new DOMPoint(event.clientX, 0).matrixTransform(svg.getScreenCTM().inverse()).x;
    const nearest = lines.map(({ points, told }) => {
      const distances = points.map((point) => Math.abs(point - x));
      return told[distances.indexOf(Math.min(...distances))];
    });
    output.textContent = `step ${nearest[0][0]}: ${nearest.map(([, value]) => value).join(" · ")}`;
  });
  svg.addEventListener("pointerleave", () => { output.textContent = ""; });
}
