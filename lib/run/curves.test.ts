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

it('lays a moving average over a long curve', async () => {
  const rows = (n: number) => Array.from({ length: n }, (_, step) => ({ step, reward: step % 2 }));
  const lines = (svg: string) => svg.match(/aria-roledescription="line mark"/g)?.length;
  expect(lines(await curves(rows(200)))).toBe(2);
  expect(lines(await curves(rows(20)))).toBe(1);
});

it('survives a run that has logged nothing yet', async () => {
  expect(await curves([])).toMatch(/^<svg/);
});
