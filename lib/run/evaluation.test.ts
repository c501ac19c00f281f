import { expect, it, vi } from 'vitest';
import type { Verdict } from '../environments/answers.ts';
import { accuracies, answerLines, passAtK, sampleLine, watchEvaluation } from './evaluation.ts';

/** Runs an evaluation of two batches on a clock of its own, and returns what was said of it. */
function watch({ secondsPerToken, alive }: { secondsPerToken: number; alive: (token: number) => number }): string[] {
  vi.useFakeTimers({ toFake: ['performance'] });
  try {
    const said: string[] = [];
    const bar = { note: (text: string) => void said.push(text), log: (line: string) => void said.push(`log: ${line}`) };
    const { onProgress } = watchEvaluation(30, bar, { maxNewTokens: 10, advice: (time) => `${time} more` });
    for (const rows of [20, 10]) {
      for (let positions = 1; positions <= 10; positions++) {
        vi.advanceTimersByTime(1_000 * secondsPerToken);
        onProgress({ rows, positions, sampled: 0, alive: Math.round(rows * alive(positions)) });
      }
    }
    return said;
  } finally {
    vi.useRealTimers();
  }
}

it('says how many answers are there and what the rest will take, also while none has ended', () => {
  const said = watch({ secondsPerToken: 1, alive: () => 1 });
  expect(said).toHaveLength(20); // and no advice: it takes less than a minute
  expect(said[0]).toBe('evaluating: 2/30 answers · 14s left');
  expect(said[9]).toBe('evaluating: 20/30 answers · 5s left');
  expect(said[14]).toBe('evaluating: 25/30 answers · 3s left');
  expect(said[19]).toBe('evaluating: 30/30 answers · 0s left');
});

it('counts answers that end early', () => {
  const said = watch({ secondsPerToken: 1, alive: (token) => (token > 2 ? 0.25 : 1) });
  expect(said[2]).toBe('evaluating: 15/30 answers · 3s left');
});

it('says once what a slow one will take', () => {
  const said = watch({ secondsPerToken: 12, alive: () => 1 });
  expect(said.slice(0, 2)).toEqual(['log: 2m 48s more', 'evaluating: 2/30 answers · 2m 48s left']);
  expect(said.filter((line) => line.startsWith('log'))).toHaveLength(1);
});

const sample = (completion: string, reward: number) => ({ question: '1+1', answer: '2', completion, reward });

it('shows a sample on one line, without what would steer the terminal', () => {
  expect(sampleLine(sample('<think>\n2</think>\u001b[2J', 0.1))).toBe('reward 0.1: 1+1 → <think> 2</think>\\u001b[2J');
  expect(sampleLine(sample('x'.repeat(500), 0))).toMatch(/^reward 0: 1\+1 → x+…$/);
  expect(sampleLine(sample('x'.repeat(500), 0))).toHaveLength(119);
  expect(sampleLine({ ...sample('4', 1), question: 'y'.repeat(500) })).toMatch(/^reward 1: y{38}… → 4$/);
});

it('shows the same questions before and after', () => {
  const rows = [0, 5, 9].map((step) => ({ step, answers: [sample(`at ${step}`, step / 9)] }));
  expect(answerLines(rows)).toEqual(['1+1 (answer: 2)', '  before, reward 0: at 0', '  after, reward 1: at 9']);
  expect(answerLines(rows.slice(2))).toEqual(['1+1 (answer: 2)', '  after, reward 1: at 9']);
  const other = { step: 9, answers: [{ ...sample('2', 1), question: '2+2' }] };
  expect(answerLines([rows[0], other])).toEqual(['2+2 (answer: 2)', '  after, reward 1: 2']);
  expect(answerLines([])).toEqual([]);
});

it('splits the accuracy: is there an answer, and is it right if there is one', () => {
  const verdicts: Verdict[] = ['right', 'wrong', 'right', 'missing', 'missing'];
  expect(accuracies(verdicts)).toEqual({ 'eval/accuracy': 0.4, 'eval/format': 0.6, 'eval/ability': 2 / 3 });
  expect(accuracies(['missing'])).toEqual({ 'eval/accuracy': 0, 'eval/format': 0, 'eval/ability': Number.NaN });
});

/** n samples, of which the first c are right. */
const group = (n: number, c: number) => Array.from({ length: n }, (_, i): Verdict => (i < c ? 'right' : 'wrong'));

it('pass@k is the share of the sets of k samples that have a right one', () => {
  // Of 4 samples, 1 is right: 3 of the 6 pairs have it. Of 5 with 2 right ones: 7 of the 10 pairs have one.
  expect(passAtK([group(4, 1)])).toEqual({
    ...{ 'eval/sampled_accuracy': 0.25, 'eval/pass_at_2': 0.5, 'eval/pass_at_4': 1 },
  });
  expect(passAtK([group(5, 2)])['eval/pass_at_2']).toBeCloseTo(0.7, 12);
  expect(passAtK([group(4, 1), group(4, 0)])).toMatchObject({ 'eval/pass_at_2': 0.25, 'eval/pass_at_4': 0.5 });
  expect(Object.keys(passAtK([group(12, 3)]))).toEqual([
    'eval/sampled_accuracy',
    ...[2, 4, 8, 12].map((k) => `eval/pass_at_${k}`),
  ]);
  expect(passAtK([group(1, 1)])).toEqual({ 'eval/sampled_accuracy': 1, 'eval/pass_at_1': 1 });
  expect(passAtK([])).toEqual({});
});

it('pass@k is that of infinitely many samples on average, which 1 - (1 - c/n)^k is not', () => {
  // Exactly: the mean over c, which is spread binomially, of what is estimated from it.
  const [n, k, p] = [8, 4, 0.3];
  const choose = (c: number) => Array.from({ length: c }, (_, i) => (n - i) / (i + 1)).reduce((a, b) => a * b, 1);
  const expected = (estimate: (c: number) => number) =>
    Array.from({ length: n + 1 }, (_, c) => choose(c) * p ** c * (1 - p) ** (n - c) * estimate(c)).reduce(
      (a, b) => a + b,
    );
  expect(expected((c) => passAtK([group(n, c)])[`eval/pass_at_${k}`])).toBeCloseTo(1 - (1 - p) ** k, 12);
  expect(expected((c) => 1 - (1 - c / n) ** k)).toBeLessThan(1 - (1 - p) ** k - 0.03);
});
