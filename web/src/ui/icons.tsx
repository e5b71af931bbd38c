// Icons of one hand: 20 × 20, drawn with a line of 1.5.

const PATHS = {
  panel: "M3.5 4.5h13v11h-13zM8 4.5v11",
  pen: "M10.5 4.5h-6v11h11v-6M9 11l.5-2.5 6-6 2 2-6 6z",
  search: "M13 13l4 4M14.5 8.5a6 6 0 1 1-12 0 6 6 0 0 1 12 0z",
  sliders: "M3 6h7M14 6h3M3 14h3M10 14h7M12 4v4M8 12v4",
  copy: "M7.5 7.5h9v9h-9zM12.5 7.5v-4h-9v9h4",
  check: "M4 10.5l4 4 8-9",
  again: "M15.5 10a5.5 5.5 0 1 1-1.6-3.9L16 8.2M16 4v4.2h-4.2",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  up: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  dots: "M5 10a.5.5 0 1 1-1 0 .5.5 0 0 1 1 0zM10.5 10a.5.5 0 1 1-1 0 .5.5 0 0 1 1 0zM16 10a.5.5 0 1 1-1 0 .5.5 0 0 1 1 0z",
  close: "M5 5l10 10M15 5L5 15",
  function: "M6 3.5c-2 0-2 1-2 3s0 3-1.5 3.5C4 10.5 4 11.5 4 13.5s0 3 2 3M14 3.5c2 0 2 1 2 3s0 3 1.5 3.5c-1.5.5-1.5 1.5-1.5 3.5s0 3-2 3",
  system: "M3 4h14v9H3zM7 16.5h6M10 13v3.5",
  light: "M10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1M4.3 15.7l1.1-1.1M14.6 5.4l1.1-1.1M13.5 10a3.5 3.5 0 1 1-7 0 3.5 3.5 0 0 1 7 0z",
  dark: "M16.5 11.8A7 7 0 0 1 8.2 3.5a7 7 0 1 0 8.3 8.3z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}
