import { expect, it } from 'vitest';
import { curves } from './curves.ts';

it('draws a panel for every metric that occurs, with its unit, and none for the others', async () => {
  const svg = await curves([
    { step: 0, 'eval/accuracy': 0.4 },
    { step: 1, reward: 0.5, 'completions/mean_length': 30, loss: 0.1 },
    { step: 2, reward: 0.6, 'completions/mean_length': 31, kl: null, 'eval/accuracy': 0.5 },
  ]);
  expect(svg).toMatch(/^<svg/);
  for (const text of ['Reward', 'Held-out accuracy', 'Completion length', 'tokens', 'step']) {
    expect(svg).toContain(`>${text}</text>`);
  }
  for (const text of ['KL to the reference', 'Learning rate', 'Entropy']) expect(svg).not.toContain(text);
  expect(svg).toContain('fill="white"'); // readable on a dark page
});

it('leaves no panel alone at the bottom, and aligns all', async () => {
  const row = { step: 1, reward: 1, entropy: 2, kl: 3, grad_norm: 4, learning_rate: 5e-4 };
  const panels = async ({ kl, ...rest }: typeof row, more = {}) => {
    const svg = await curves([
      { step: 0, reward: 0 },
      { ...rest, ...more },
    ]);
    const widths = [...svg.matchAll(/"background" aria-hidden="true" d="M0,0h(\d\d+)v130h/g)].map(([, width]) => width);
    const titles = [...svg.matchAll(/translate\(0,(-[\d.]+)\)"><path class="background"/g)].map(([, y]) => Number(y));
    expect(titles).toHaveLength(widths.length);
    expect(Math.max(...titles) - Math.min(...titles)).toBeLessThan(3); // as far above each panel, whatever its scale
    return widths;
  };
  expect(await panels(row)).toEqual(['340', '340', '340', '340']);
  expect(await panels(row, { kl: 3 })).toEqual(['756', '340', '340', '340', '340']);
});

it('lays a moving average over a long curve', async () => {
  const rows = (n: number) => Array.from({ length: n }, (_, step) => ({ step, reward: step % 2 }));
  const lines = (svg: string) => svg.match(/aria-roledescription="line mark"/g)?.length;
  expect(lines(await curves(rows(200)))).toBe(2);
  expect(lines(await curves(rows(20)))).toBe(1);
});

it('survives a run that has logged nothing yet', async () => {
  expect(await curves([])).toMatch(/^<svg/);
});
