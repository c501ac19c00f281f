import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type Countdown, equationReward, equationVerdict } from './score.ts';

const SHARED = join(import.meta.dirname, '../../../shared');
const skipped = { skip: !existsSync(SHARED) };

const verdictOf = (equation: string, numbers: number[], target: number) =>
  equationVerdict(`<answer>${equation}</answer>`, { numbers, target });

describe('an equation', () => {
  it.each([
    ['(3 + 5) * 2', [2, 3, 5], 16],
    [' 2*(5+3)\n', [2, 3, 5], 16],
    ['(3 + 5) × 2', [2, 3, 5], 16],
    ['5 − 3 ÷ 3', [3, 3, 5], 4],
    ['3 * (71 / 3)', [3, 3, 71], 71],
    ['1 / 3 * 3 * 7', [1, 3, 3, 7], 7],
    ['-3 + 5', [3, 5], 2],
    ['10 + 9 - 2', [2, 9, 10], 17],
    ['1 / 3', [1, 3], 0.3333333333333333],
    ['1 / 56 / 60 / 45', [1, 45, 56, 60], 1 / 56 / 60 / 45],
    ['0 * 7', [0, 7], 0],
  ])('%j of %j makes %d', (equation, numbers, target) => expect(verdictOf(equation, numbers, target)).toBe('right'));

  it.each([
    ['another value', '3 + 5 * 2', [2, 3, 5], 16],
    ['a number left out', '3 + 5', [2, 3, 5], 8],
    ['a number too many', '3 + 5 + 1', [3, 5], 9],
    ['a number used twice', '3 + 3', [3], 6],
    ['a number used once of two', '3 + 5', [3, 3, 5], 8],
    ['another number', '3 + 6', [3, 5], 9],
    ['digits put together', '35', [3, 5], 35],
    ['digits taken apart', '3 + 5', [35], 8],
    ['a decimal point', '1.5 * 2', [1, 2, 5], 3],
    ['what the equation makes, too', '3 + 5 = 8', [3, 5], 8],
    ['a power', '2 ** 3', [2, 3], 8],
    ['a power', '2 ^ 3', [2, 3], 8],
    ['a factorial', '3! + 0', [0, 3], 6],
    ['a function', 'max(3, 5)', [3, 5], 5],
    ['a function', 'sqrt(9)', [9], 3],
    ['whole division', '7 // 2', [2, 7], 3],
    ['no sign between', '2(3)', [2, 3], 6],
    ['no sign between', '2 3', [2, 3], 6],
    ['a zero in front', '03 + 5', [3, 5], 8],
    ['other digits', '٣ + 5', [3, 5], 8],
    ['division by zero', '5 / (3 - 3)', [3, 3, 5], 5],
    ['a parenthesis left open', '(3 + 5', [3, 5], 8],
    ['an exponent', '3e5', [3, 5], 300000],
    ['a value close by', '5 + 1 / 98 / 99 / 100', [1, 5, 98, 99, 100], 5],
    ['a value close by', '1 / 3', [1, 3], 0.33333],
    ['words', 'three plus five', [3, 5], 8],
    ['no number', '+', [3, 5], 8],
    ['no number, where none is given', '()', [], 0],
    ['code', 'globalThis.process.exit(3 + 5)', [3, 5], 8],
    ['code', '[3+5][0]', [3, 5], 8],
  ])('with %s is wrong: %j of %j for %d', (_, equation, numbers, target) => {
    expect(verdictOf(equation, numbers, target)).toBe('wrong');
  });
});

describe('a completion', () => {
  const countdown: Countdown = { numbers: [2, 3, 5], target: 16 };

  it.each([
    ['<think>3 + 5 is 8, twice</think>\n<answer>(3+5)*2</answer>\n', 1],
    ['<answer>3+5*2</answer> no: <answer>(3+5)*2</answer>', 1],
    ['<answer>(3+5)*2</answer> or <answer>3+5*2</answer>', 0.1],
    ['<answer>(3+5)*2</answer> <answer>', 1],
    ['<answer>no</answer>', 0.1],
    ['<answer> </answer>', 0],
    ['<answer>(3+5)*2', 0],
    ['(3+5)*2', 0],
    ['', 0],
  ])('%j gets %d', (completion, reward) => expect(equationReward(completion, countdown)).toBe(reward));

  it('gets for a wrong equation what is chosen', () => {
    expect(equationReward('<answer>3+5*2</answer>', countdown, { formatReward: 0 })).toBe(0);
  });

  it('leaves the numbers in their order', () => {
    const numbers = [5, 2, 3];
    equationReward('<answer>(3+5)*2</answer>', { numbers, target: 16 });
    expect(numbers).toEqual([5, 2, 3]);
  });

  it('with the solution of a task is right (skipped where ../shared is absent)', skipped, () => {
    const lines = readFileSync(join(SHARED, 'data/countdown_1000.jsonl'), 'utf8').trim().split('\n');
    expect(lines).toHaveLength(1000);
    for (const line of lines) {
      const { nums, target, solution } = JSON.parse(line);
      expect(verdictOf(solution, nums, target), line).toBe('right');
      expect(verdictOf(`${solution} + 0`, nums, target), line).toBe('wrong');
      expect(verdictOf(solution, nums, target + 1), line).toBe('wrong');
    }
  });
});

describe("Search-R1's reward (skipped where ../shared is absent)", skipped, () => {
  type Case = { solution: string; numbers: number[]; target: number; score: number };
  const casesOf = (): Case[] =>
    JSON.parse(readFileSync(join(SHARED, 'oracles/grpo/countdown_score.json'), 'utf8')).cases;

  /**
   * Search-R1 takes a whole conversation, and of that the last line, if it follows a header. Ours takes a completion,
   * which has no header, and whose answer is one wherever it stands.
   */
  const lineThatCounts = (conversation: string): string => {
    const [, said = ''] = conversation.split(/Assistant:|<\|im_start\|>assistant/);
    return said.slice(said.lastIndexOf('\n') + 1);
  };

  it('is ours in all cases, for the line that it looks at', () => {
    const cases = casesOf();
    expect(cases).toHaveLength(525);
    for (const { solution, score, ...countdown } of cases) {
      expect(equationReward(lineThatCounts(solution), countdown), solution).toBe(score);
    }
  });

  it('differs where a line follows, or where there is no header: a completion is not worth less for that', () => {
    const differing = casesOf().filter(({ solution, score, ...countdown }) => {
      return equationReward(solution, countdown) !== score;
    });
    expect(differing).toHaveLength(150);
    for (const { solution, score } of differing) {
      expect(score).toBe(0);
      expect(solution).toMatch(/^<answer>[^<]*<\/answer>$|^Assistant: hmm <answer>[^<]*<\/answer>\nok$/);
    }
  });
});

describe('a hostile completion', () => {
  it.each(['<answer>', '</answer>', '<answer>1</answer>', '(', '1+', '-', '9', ' ', '1/', '*', '((1)'])(
    'of a million characters of %j is scored at once',
    (part) => {
      const text = part.repeat(1e6 / part.length);
      const numbers = text.match(/\d+/g)?.map(Number) ?? [];
      const began = performance.now();
      for (const completion of [text, `<answer>${text}x</answer>`, `<answer>${text}</answer>`]) {
        equationReward(completion, { numbers, target: 8 });
      }
      expect(performance.now() - began).toBeLessThan(5000);
    },
  );
});
