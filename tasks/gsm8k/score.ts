/**
 * GSM8K's rewards, as three others give them: verl, for the number after ####, or the last number; torchrl, for an answer
 * in tags; torchrl once, step by step. What differs is where the answer is looked for, and when two are the same.
 */
import { betweenTags, sameAnswer, type Verdict } from '../../lib/environments/answers.ts';

/** Where a response's answer is: after ####, as GSM8K's own solutions have it, or wherever its last number is. */
export type Extraction = 'strict' | 'flexible';

/** How many characters at the end of a response verl looks at: so long a response may go on after its answer. */
const TAIL = 300;

/**
 * The answer of a response as verl's `extract_solution` finds it (verl/utils/reward_score/gsm8k.py). Strict: the last that
 * follows `#### `, without commas. Flexible: the last that looks like a number, whatever commas and points it has; a
 * point alone only if there is nothing else.
 * @returns undefined if there is none among the last 300 characters
 */
export function extractAnswer(response: string, extraction: Extraction = 'strict'): string | undefined {
  // Characters are code points, which are one or two units of a string.
  const tail = Array.from(response.slice(-2 * TAIL))
    .slice(-TAIL)
    .join('');
  if (extraction === 'strict') return [...tail.matchAll(/#### (-?[\d.,]+)/g)].at(-1)?.[1].replaceAll(',', '');
  const numbers = tail.match(/-?[\d.,]+/g) ?? [];
  return numbers.findLast((number) => number !== '.') ?? numbers[0];
}

/**
 * What became of the answer of a response, which verl compares as text: 18.00 and 18. are not 18.
 * @param answer - the expected one, as GSM8K has it after ####; its commas do not count
 */
export function extractedVerdict(response: string, answer: string, extraction: Extraction = 'strict'): Verdict {
  const given = extractAnswer(response, extraction);
  return given === undefined ? 'missing' : given === answer.replaceAll(',', '') ? 'right' : 'wrong';
}

/** verl's reward: 1 for the right answer, `formatReward` (0, as there) for a wrong one, 0 for none. */
export function extractedReward(
  response: string,
  answer: string,
  { extraction = 'strict', formatReward = 0 }: { extraction?: Extraction; formatReward?: number } = {},
): number {
  return { right: 1, wrong: formatReward, missing: 0 }[extractedVerdict(response, answer, extraction)];
}

/** The first thoughts and the first answer in their tags; empty where there are none. */
export function taggedParts(response: string): { think: string; answer: string } {
  const [[think = ''], [answer = '']] = ['think', 'answer'].map((tag) => betweenTags(response, tag));
  return { think, answer };
}

/** What became of the answer in its tags; empty tags hold none. Numbers are compared as {@link sameAnswer} does. */
export function taggedVerdict(response: string, answer: string): Verdict {
  const given = taggedParts(response).answer;
  return given === '' ? 'missing' : sameAnswer(given, answer) ? 'right' : 'wrong';
}

/**
 * torchrl's reward (torchrl/envs/llm/reward/gsm8k.py): 1 for the right answer in its tags, `formatReward` for a wrong one,
 * 0 for none. Thoughts are not rewarded.
 */
export function taggedReward(
  response: string,
  answer: string,
  { formatReward = 0.1 }: { formatReward?: number } = {},
): number {
  return { right: 1, wrong: formatReward, missing: 0 }[taggedVerdict(response, answer)];
}

/**
 * The reward that torchrl gave before (0.9.0): 100 if the last answer in tags is the right one,
 * letter by letter. If not, 5 if there is just one answer, 5 if there is just one <think>, 20 if any answer is right, and
 * 10 if any has the right one somewhere in it. The last is a lesson: it also pays for 118 where 18 is expected, and for
 * a list of all numbers.
 */
export function shapedReward(response: string, answer: string): number {
  const [thoughts, answers] = ['think', 'answer'].map((tag) => betweenTags(response, tag));
  if (answers.at(-1) === answer) return 100;
  const contained = answers.some((given) => given.includes(answer));
  return (
    5 * Number(answers.length === 1) +
    5 * Number(thoughts.length === 1) +
    20 * Number(answers.includes(answer)) +
    10 * Number(contained)
  );
}
