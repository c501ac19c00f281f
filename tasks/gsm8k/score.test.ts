import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  extractAnswer,
  extractedReward,
  extractedVerdict,
  shapedReward,
  taggedParts,
  taggedReward,
  taggedVerdict,
} from './score.ts';

const shared = join(import.meta.dirname, '../../../shared/oracles/grpo');
const skipped = { skip: !existsSync(shared) };

describe('the answer after ####', () => {
  it.each([
    ['9 * 2 = 18\n#### 18', '18'],
    ['#### 18 dollars', '18'],
    ['#### 1,234,567', '1234567'],
    ['#### -5', '-5'],
    ['#### 18.', '18.'],
    ['#### 18.00', '18.00'],
    ['first #### 17 then #### 18', '18'],
    ['##### 18', '18'],
    ['####18', undefined],
    ['####  18', undefined],
    ['#### $18', undefined],
    ['#### \u221218', undefined],
    ['#### ٣', undefined],
    ['#### ,', ''],
    ['#### .', '.'],
    ['The answer is 18', undefined],
    ['', undefined],
  ])('of %j is %j', (response, answer) => expect(extractAnswer(response)).toBe(answer));
});

describe('the last number', () => {
  it.each([
    ['9 * 2 = 18', '18'],
    ['It is 18.', '18.'],
    ['18 apples, and 26 pears', '26'],
    ['#### 1,234', '1,234'],
    ['from 3-5', '-5'],
    ['18, or so', '18,'],
    ['18 . . .', '18'],
    ['18, well', '18,'],
    ['18 , well', ','],
    ['well . so .', '.'],
    ['well ...', '...'],
    ['\\boxed{72}', '72'],
    ['$72', '72'],
    ['1/2', '2'],
    ['7e3', '3'],
    ['no number', undefined],
    ['', undefined],
  ])('of %j is %j', (response, answer) => expect(extractAnswer(response, 'flexible')).toBe(answer));
});

describe('an answer that is extracted', () => {
  it.each([
    [293, '18'],
    [294, undefined],
  ])('may be followed by %d characters, each of two units', (length, answer) => {
    expect(extractAnswer(`#### 18${'😀'.repeat(length)}`)).toBe(answer);
  });

  it('is cut where the last 300 characters begin', () => {
    expect(extractAnswer(`1234${'x'.repeat(298)}`, 'flexible')).toBe('34');
  });

  it('is compared as text, without the commas of the expected one', () => {
    expect(extractedVerdict('#### 1234', '1,234')).toBe('right');
    expect(extractedVerdict('#### 1234.0', '1,234')).toBe('wrong');
    expect(extractedVerdict('1234', '1,234')).toBe('missing');
    expect(extractedVerdict('1234', '1,234', 'flexible')).toBe('right');
    expect(extractedVerdict('1,234', '1,234', 'flexible')).toBe('wrong'); // verl leaves its commas
  });

  it('is rewarded', () => {
    expect(extractedReward('#### 18', '18')).toBe(1);
    expect(extractedReward('#### 17', '18')).toBe(0);
    expect(extractedReward('#### 17', '18', { formatReward: 0.1 })).toBe(0.1);
    expect(extractedReward('17', '18', { formatReward: 0.1 })).toBe(0);
    expect(extractedReward('17', '18', { formatReward: 0.1, extraction: 'flexible' })).toBe(0.1);
  });

  it("is verl's, and its reward, in all cases (skipped where ../shared is absent)", skipped, () => {
    type Case = { solution: string; ground_truth: string; method: 'strict'; extracted: string | null; score: number };
    const { cases }: { cases: Case[] } = JSON.parse(readFileSync(join(shared, 'gsm8k_score.json'), 'utf8'));
    expect(cases).toHaveLength(720);
    for (const { solution, ground_truth, method: extraction, extracted, score } of cases) {
      expect(extractAnswer(solution, extraction) ?? null, solution).toBe(extracted);
      expect(extractedReward(solution, ground_truth, { extraction, formatReward: 0.1 }), solution).toBe(score);
    }
  });
});

describe('the answer in its tags', () => {
  it.each([
    ['<think>9 * 2</think><answer>18</answer>', 'right', 1],
    ['<answer> $18.00\n</answer>', 'right', 1],
    ['<answer>\\boxed{18}</answer>', 'right', 1],
    ['<think>a < b & c</think> so <answer>18</answer>.', 'right', 1],
    ['<answer>18</answer><answer>17</answer>', 'right', 1],
    ['<answer>17</answer><answer>18</answer>', 'wrong', 0.1],
    ['<answer>118</answer>', 'wrong', 0.1],
    ['<answer>17 18 19</answer>', 'wrong', 0.1],
    ['<answer></answer><answer>18</answer>', 'missing', 0],
    ['<answer> </answer>', 'missing', 0],
    ['<answer>18', 'missing', 0],
    ['</answer>18<answer>', 'missing', 0],
    ['<ANSWER>18</ANSWER>', 'missing', 0],
    ['<think>18</think>', 'missing', 0],
    ['18', 'missing', 0],
    ['', 'missing', 0],
  ])('of %j is %s: %d', (response, verdict, reward) => {
    expect(taggedVerdict(response, '18')).toBe(verdict);
    expect(taggedReward(response, '18')).toBe(reward);
  });

  it('comes with thoughts, and a wrong one with what is chosen', () => {
    expect(taggedParts('<think> r\n</think> <answer>17</answer>')).toEqual({ think: 'r', answer: '17' });
    expect(taggedReward('<answer>17</answer>', '18', { formatReward: 0.5 })).toBe(0.5);
  });
});

describe('the shaped reward', () => {
  it.each([
    ['<think>9 * 2</think><answer>18</answer>', 100],
    ['<answer>17</answer><answer>18</answer>', 100],
    ['<answer>18</answer><answer>17</answer>', 30],
    ['<think></think><answer>$18</answer>', 20],
    ['<answer>118</answer>', 15],
    ['<think></think><answer>17</answer>', 10],
    ['<think></think><think></think><answer>17</answer>', 5],
    ['18', 0],
    ['', 0],
  ])('of %j is %d', (response, reward) => expect(shapedReward(response, '18')).toBe(reward));
});

describe("torchrl's rewards (skipped where ../shared is absent)", skipped, () => {
  type Graded = { think: string; answer: string; reward: number; success: boolean };
  type Head = Graded & { reward_think: number; reward_answer: number; reward_right: number };
  type Case = { response: string; true_answer: string; seed003: Graded; head: Head };
  const casesOf = (): Case[] => JSON.parse(readFileSync(join(shared, 'torchrl_gsm8k.json'), 'utf8')).cases;

  it('are ours in all cases', () => {
    const cases = casesOf();
    expect(cases).toHaveLength(231);
    for (const { response, true_answer, head } of cases) {
      const { think, answer } = taggedParts(response);
      const reward = taggedReward(response, true_answer);
      expect({
        ...{ think, answer, reward_think: Number(think !== ''), reward_answer: Number(answer !== '') },
        ...{ reward_right: reward, reward, success: taggedVerdict(response, true_answer) === 'right' },
      }).toEqual(head);
    }
  });

  it('were, as shaped before, ours but for two mistakes', () => {
    const differences = new Map<string, number>();
    for (const { response, true_answer, seed003 } of casesOf()) {
      const reward = shapedReward(response, true_answer);
      if (reward === seed003.reward) continue;
      const difference = `${seed003.reward}, not ${reward}, for ${response.replace(true_answer, 'N')}`;
      differences.set(difference, (differences.get(difference) ?? 0) + 1);
    }
    expect([...differences]).toEqual([
      // It took the absence of tags for one empty answer and one empty thought, and paid for both.
      ['10, not 0, for N', 33],
      // It read XML, and only its top level: an answer within thoughts was none. Later torchrl found that, too.
      ['10, not 100, for <think>r<answer>N</answer></think>', 33],
    ]);
  });
});

describe('a hostile response', () => {
  const parts = [
    '<answer>',
    '</answer>',
    '<think>',
    '<think></think><answer></answer>',
    '9',
    ',',
    '.',
    '-',
    '#### ',
    ' ',
  ];
  it.each(parts)('of a million characters of %j is scored at once', (part) => {
    const response = part.repeat(1e6 / part.length);
    const began = performance.now();
    for (const text of [response, `<answer>${response}x</answer>`]) {
      extractedReward(text, '18');
      extractedReward(text, '18', { extraction: 'flexible' });
      taggedReward(text, '18');
      shapedReward(text, '18');
    }
    expect(performance.now() - began).toBeLessThan(5000);
  });
});
