/** Curves over steps, drawn as SVG. */
import { brief, element } from '../../watch/page/dom.ts';

/** Values by their steps, and how they are drawn. `dots`: asked from time to time. */
export type Curve = { name: string; kind: string; points: [step: number, value: number][]; dots?: boolean };

const [WIDTH, HEIGHT] = [480, 180];
const MARGIN = { right: 8, top: 8, bottom: 22 };
/** Of a digit of a label. */
const DIGIT = 7.2;

function svg(name: string, attributes: Record<string, string | number>, ...children: (Node | string)[]): SVGElement {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/**
 * A chart of some curves.
 * @param title - what the values are
 * @param marks - steps after which something was changed
 */
export function chart(title: string, curves: Curve[], marks: number[]): HTMLElement {
  const all = curves.flatMap(({ points }) => points).filter(([, value]) => Number.isFinite(value));
  const [low, high] = [Math.min(0, ...all.map(([, y]) => y)), Math.max(1, ...all.map(([, y]) => y))];
  const last = Math.max(10, ...all.map(([step]) => step));
  const heights = [low, (low + high) / 2, high];
  const left = 10 + DIGIT * Math.max(3, ...heights.map((value) => brief(value).length));
  const x = (step: number) => left + (step / last) * (WIDTH - left - MARGIN.right);
  const y = (value: number) =>
    HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const grid = heights.flatMap((value) => [
    svg('line', { class: 'grid', x1: left, x2: WIDTH - MARGIN.right, y1: y(value), y2: y(value) }),
    svg('text', { x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }, brief(value)),
  ]);
  const steps = [0, last].map((step) =>
    svg(
      'text',
      { x: x(step), y: HEIGHT - 5, 'text-anchor': step === 0 ? 'start' : 'end' },
      step === 0 ? 'step 0' : String(step),
    ),
  );
  const changes = marks.map((step) =>
    svg('line', { class: 'mark', x1: x(step), x2: x(step), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
  );
  const drawn = curves.flatMap(({ kind, points, dots }) => {
    const shown = points.filter(([, value]) => Number.isFinite(value)).map(([step, value]) => [x(step), y(value)]);
    const line = svg('polyline', { class: `curve ${kind}`, points: shown.map((point) => point.join()).join(' ') });
    const marked = dots ? shown : shown.slice(-1);
    return [line, ...marked.map(([cx, cy]) => svg('circle', { class: `dots ${kind}`, cx, cy, r: dots ? 3.5 : 2.5 }))];
  });
  const newest = curves
    .map(({ name, points }) => `${name} ${points.length > 0 ? brief(points.at(-1)![1]) : '–'}`)
    .join(', ');
  const picture = svg(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${title}: ${newest}` },
    ...[...grid, ...steps, ...changes, ...drawn],
  );
  const key = curves.map(({ name, kind, points }) =>
    element(
      'li',
      {},
      element('i', { class: `line ${kind}` }),
      `${name} `,
      element('b', {}, points.length > 0 ? brief(points.at(-1)![1]) : ''),
    ),
  );
  if (marks.length > 0) key.push(element('li', {}, element('i', { class: 'line mark' }), 'reward or settings changed'));
  return element('figure', {}, element('figcaption', {}, title), picture, element('ul', { class: 'key' }, ...key));
}
